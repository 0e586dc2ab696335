"""The text of a training: documents of tokens, each token marked as learned or only read."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError

Bools = NDArray[np.bool_]

CURVE_DOCUMENTS = 16  # of the hold-out that a point of a curve looks at, ...
CURVE_POSITIONS = 2048  # ... or these, evenly spread, where a batch consists of positions


@dataclass(frozen=True, eq=False)
class Document:
    """A stretch of text that the model sees as one sequence."""

    tokens: Ints  # [n]
    learned: Bools  # [n]  False: context only, e.g. the user's side of a chat
    category: str = ""  # the report has a row for each one

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, length: int) -> "Document":
        """Return the document up to `length` tokens."""
        return replace(self, tokens=self.tokens[:length], learned=self.learned[:length])

    def digest(self) -> str:
        """Return the sha256 of the tokens and marks."""
        return hashlib.sha256(self.tokens.tobytes() + self.learned.tobytes()).hexdigest()


@dataclass(frozen=True)
class Split:
    """Documents to learn from, and others to judge by."""

    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    left_out: Mapping[str, str | int] = field(default_factory=dict)  # counts, for the report

    def digest(self) -> str:
        """Return the sha256 of everything in it, order included."""
        parts = [d.digest() for d in self.training] + ["|"] + [d.digest() for d in self.held_out]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def in_template(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    answer: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the chat as the model reads it; `answer`: up to where the assistant begins to speak.

    Raises ConfigError if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "the target's tokenizer has no chat template", hint="train on plain text files"
        )
    text: str = tokenizer.apply_chat_template(
        list(messages),
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=answer,
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
    return mean_documents(batch_tokens, len(documents), sum(map(len, documents)))


def mean_documents(batch_tokens: int, documents: int, tokens: int) -> int:
    """Return how many of some documents with `tokens` in all hold about `batch_tokens`; >= 1."""
    return max(1, round(batch_tokens * documents / max(1, tokens)))


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
