"""The text of a training: documents of tokens, each token marked as learned or only read."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError

Bools = NDArray[np.bool_]

CURVE_DOCUMENTS = 16  # of the hold-out that a point of a curve looks at


@dataclass(frozen=True, eq=False)
class Document:
    """A stretch of text that the model sees as one sequence."""

    tokens: Ints  # [n]
    learned: Bools  # [n]  False: context only, e.g. the user's side of a chat

    def __len__(self) -> int:
        return len(self.tokens)

    def digest(self) -> str:
        """Return the sha256 of the tokens and marks."""
        return hashlib.sha256(self.tokens.tobytes() + self.learned.tobytes()).hexdigest()


@dataclass(frozen=True)
class Split:
    """Documents to learn from, and others to judge by."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]

    def digest(self) -> str:
        """Return the sha256 of everything in it, order included."""
        parts = [d.digest() for d in self.training] + ["|"] + [d.digest() for d in self.held_out]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def read_documents(file: Path, tokenizer: Any, length: int) -> list[Document]:
    """Read a file: `*.jsonl` as chats, one a line; anything else as one plain text.

    Documents longer than `length` tokens are cut: a text into several, a chat at its end. Raises
    ConfigError with file:line for a line that is not a chat, and for a file without text.
    """
    if file.suffix == ".jsonl":
        documents = [_chat(line, tokenizer, length) for line in _chat_lines(file)]
    else:
        documents = _cut(_read_text(file), tokenizer, length)
    if not documents:
        raise ConfigError(f"{file}: no text to train on")
    return documents


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text: {error}") from error


def _cut(text: str, tokenizer: Any, length: int) -> list[Document]:
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    pieces = [ids[i : i + length].astype(np.int64) for i in range(0, len(ids), length)]
    return [Document(piece, np.ones(len(piece), bool)) for piece in pieces]


@dataclass(frozen=True)
class _ChatLine:
    place: str
    messages: Sequence[dict[str, str]]


def _chat_lines(file: Path) -> list[_ChatLine]:
    chats = []
    for number, line in enumerate(_read_text(file).splitlines(), 1):
        if line.strip():
            chats.append(_ChatLine(f"{file}:{number}", _messages(line, f"{file}:{number}")))
    return chats


def _messages(line: str, place: str) -> list[dict[str, str]]:
    wanted = '{"messages": [{"role": "user", "content": "..."}, ...]}'
    try:
        messages = json.loads(line)["messages"]
        chat = [{"role": m["role"], "content": m["content"]} for m in messages]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{place}: not a chat", hint=f"a line must be {wanted}") from error
    for message in chat:
        if not all(isinstance(value, str) for value in message.values()):
            raise ConfigError(f"{place}: role and content must be text", hint=f"use {wanted}")
        if message["role"] not in ("system", "user", "assistant"):
            raise ConfigError(f"{place}: unknown role {message['role']!r}")
    if not any(m["role"] == "assistant" for m in chat):
        raise ConfigError(f"{place}: the chat has no assistant message, so nothing to learn")
    return chat


def _chat(line: _ChatLine, tokenizer: Any, length: int) -> Document:
    """Return the chat in the model's template; only the assistant's messages are learned."""
    whole = in_template(tokenizer, line.messages, answer=False)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], np.int64)
    learned = np.zeros(len(starts), bool)
    for begin, end in _spoken(line, tokenizer, whole):
        learned |= (starts >= begin) & (starts < end)
    tokens = np.asarray(encoded["input_ids"], np.int64)
    return Document(tokens[:length], learned[:length])


def _spoken(line: _ChatLine, tokenizer: Any, whole: str) -> Iterable[tuple[int, int]]:
    """Yield where in the text the assistant's messages are, the mark of their end included."""
    for i, message in enumerate(line.messages):
        if message["role"] == "assistant":
            before = in_template(tokenizer, line.messages[:i], answer=True)
            after = in_template(tokenizer, line.messages[: i + 1], answer=False).rstrip()
            if not (whole.startswith(before) and whole.startswith(after)):
                raise ConfigError(
                    f"{line.place}: the chat template rewrites earlier turns, so it cannot be told "
                    "what the assistant said",
                    hint="give one file a turn, or plain text",
                )
            yield len(before), len(after)


def in_template(tokenizer: Any, messages: Sequence[dict[str, str]], *, answer: bool) -> str:
    """Return the chat as the model reads it; `answer`: up to where the assistant begins to speak.

    Raises ConfigError if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "the target's tokenizer has no chat template", hint="train on plain text files"
        )
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=answer
    )
    return text


def split_documents(documents: Sequence[Document], hold_out: float, seed: int) -> Split:
    """Set whole documents aside: the same ones for the same seed, whatever their order.

    Equal documents land on one side. Raises ConfigError if one side would be empty.
    """
    groups = sorted({d.digest() for d in documents}, key=lambda name: _shuffled(name, seed))
    aside = set(groups[: math.ceil(hold_out * len(groups))])
    training = tuple(d for d in documents if d.digest() not in aside)
    if not training or not aside:
        raise ConfigError(
            f"{len(groups)} different document(s) cannot be split into training and hold-out",
            hint="give more text, or a smaller train.sequence_length",
        )
    return Split(training, tuple(d for d in documents if d.digest() in aside))


def _shuffled(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def documents_a_step(documents: Sequence[Document], batch_tokens: int) -> int:
    """Return how many documents hold about `batch_tokens` tokens; at least one."""
    return max(1, round(batch_tokens * len(documents) / sum(map(len, documents))))


def head_labels(document: Document, heads: int) -> Ints:
    """Return [n, heads]: what head k should say at position t, token t + 2 + k; -1: nothing.

    Nothing where a token from t + 1 up to that one is past the end or was not spoken by the model:
    heads are asked only after a token that the model itself has just chosen.
    """
    n = len(document)
    labels = np.full((n, heads), -1, np.int64)
    spoken = np.append(document.learned[1:], False)  # at t: whether t + 1 is
    for k in range(heads):
        ahead = k + 2
        reach = max(0, n - ahead)
        spoken = spoken[:reach] & document.learned[ahead:]
        labels[:reach, k] = np.where(spoken, document.tokens[ahead:], -1)
    return labels


def spoken_after(document: Document, guesses: int) -> Ints:
    """Return [n, 1 + guesses]: the token after position t, then what each guess should say."""
    return np.concatenate([next_labels(document)[:, None], head_labels(document, guesses)], 1)


def next_labels(document: Document) -> Ints:
    """Return [n]: the token after position t, or -1 where it is not learned."""
    following = np.append(document.tokens[1:], -1)
    return np.where(np.append(document.learned[1:], False), following, -1)
