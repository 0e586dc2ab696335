"""Turns records into documents of one target: chats in its template, texts in pieces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError

from specpipe.core.errors import ConfigError
from specpipe.train.corpus.account import Account
from specpipe.train.corpus.files import files_of
from specpipe.train.corpus.records import Record, read_records
from specpipe.train.corpus.shapes import NO_ANSWER, Chat, Unusable, category_of, read_shape
from specpipe.train.text import Document, in_template

BEYOND = "the answer begins after train.sequence_length tokens"
_REWRITES = "the chat template rewrites the assistant's turns, so its words cannot be found"


def read_documents(path: Path, tokenizer: Any, length: int, account: Account) -> list[Document]:
    """Read a file, or every file of a folder, as documents of at most `length` tokens.

    Plain text is cut into several documents, a chat at its end. What cannot be learned is counted
    in `account`. Raises ConfigError for a file that cannot be read or has no text.
    """
    found: list[Document] = []
    for file in files_of(path):
        records = read_records(file)
        if isinstance(records, str):
            pieces = text_documents(records, tokenizer, length)
            account.read += len(pieces)
            found += pieces
            records = []
        found += record_documents(records, tokenizer, length, account)
    if not found:
        raise ConfigError(
            f"{path}: no text to train on" + (f": {account.reasons()}" * bool(account.left_out)),
            hint="docs/training.md lists the shapes of files that are known",
        )
    return found


def record_documents(
    records: Sequence[Record], tokenizer: Any, length: int, account: Account
) -> list[Document]:
    """Return the documents of records; those without any are counted in `account`."""
    found: list[Document] = []
    for record in records:
        account.read += 1
        try:
            shape, category = read_shape(record.value), category_of(record.value)
            made = (
                text_documents(shape, tokenizer, length)
                if isinstance(shape, str)
                else _fitting(chat_documents(shape, tokenizer), length, account)
            )
            found += [replace(document, category=category) for document in made]
        except Unusable as reason:
            account.leave_out(str(reason), record.place)
    return found


def text_documents(text: str, tokenizer: Any, length: int) -> list[Document]:
    """Return a plain text in pieces of at most `length` tokens, all of which are learned."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    pieces = [ids[i : i + length].astype(np.int64) for i in range(0, len(ids), length)]
    return [Document(piece, np.ones(len(piece), bool)) for piece in pieces]


def _fitting(documents: Sequence[Document], length: int, account: Account) -> list[Document]:
    """Return documents cut at their ends; raise Unusable if no learned token is left of any."""
    short = [document.cut(length) for document in documents]
    kept = [document for document in short if document.learned.any()]
    if not kept:
        raise Unusable(BEYOND)
    account.cut += any(len(document) > length for document in documents)
    return kept


def chat_documents(chat: Chat, tokenizer: Any) -> list[Document]:
    """Return a chat in the model's template; only the assistant's messages are learned.

    A template may write earlier turns in another way than the last one, e.g. without their
    reasoning. Then every turn becomes a document, with the turns before it as context. Raises
    Unusable if the chat has no answer or the template refuses it.
    """
    spoken = [i for i, m in enumerate(chat.messages) if _is_learned(m)]
    if not spoken:
        raise Unusable(NO_ANSWER)
    try:
        spans = _spans(chat, tokenizer, spoken)
        if spans is not None:
            return [_marked(_whole(chat, tokenizer), spans, tokenizer)]
        return list(_by_turns(chat, tokenizer, spoken))
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unusable(f"the chat template refuses it: {error}") from error


def _is_learned(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "assistant" and message.get("weight") != 0)


def _whole(chat: Chat, tokenizer: Any) -> str:
    return in_template(tokenizer, chat.messages, tools=chat.tools, answer=False)


def _around(chat: Chat, tokenizer: Any, turn: int) -> tuple[str, str]:
    """Return the text up to where message `turn` begins, and the text up to its end."""
    before = in_template(tokenizer, chat.messages[:turn], tools=chat.tools, answer=True)
    return before, _whole(Chat(chat.messages[: turn + 1], chat.tools), tokenizer).rstrip()


def _spans(chat: Chat, tokenizer: Any, spoken: Sequence[int]) -> list[tuple[int, int]] | None:
    """Return where in the text the assistant's messages are, the mark of their end included.

    None if the template writes a message in another way once others follow it.
    """
    whole, spans = _whole(chat, tokenizer), []
    for turn in spoken:
        before, after = _around(chat, tokenizer, turn)
        if not (whole.startswith(before) and whole.startswith(after)):
            return None
        spans.append((len(before), len(after)))
    return spans


def _by_turns(chat: Chat, tokenizer: Any, spoken: Sequence[int]) -> Iterator[Document]:
    for turn in spoken:
        before, after = _around(chat, tokenizer, turn)
        if not after.startswith(before):
            raise Unusable(_REWRITES)
        yield _marked(after, [(len(before), len(after))], tokenizer)


def _marked(text: str, spans: Sequence[tuple[int, int]], tokenizer: Any) -> Document:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = np.asarray([start for start, _ in encoded["offset_mapping"]], np.int64)
    learned = np.zeros(len(starts), bool)
    for begin, end in spans:
        learned |= (starts >= begin) & (starts < end)
    return Document(np.asarray(encoded["input_ids"], np.int64), learned)
