"""Reads the prompts that a target answers: of a file of prompts, or the openings of chats."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specpipe.core.errors import ConfigError
from specpipe.train.corpus.account import Account
from specpipe.train.corpus.files import files_of
from specpipe.train.corpus.records import Record, read_records
from specpipe.train.corpus.shapes import Chat, Unusable, category_of, read_shape
from specpipe.train.text import in_template

# The only message of a user, or an object with `messages`, perhaps with `tools` and `category`.
Prompt = str | Mapping[str, Any]
TOO_LONG = "longer than train.sequence_length"


def read_file_of_prompts(path: Path, account: Account) -> list[Prompt]:
    """Return the prompts of a file or folder; records without one are counted in `account`.

    Of a chat, the messages before the first answer. Raises ConfigError if there are none.
    """
    found: list[Prompt] = []
    for file in files_of(path):
        records = read_records(file)
        if isinstance(records, str):
            raise ConfigError(
                f"{file}: plain text, not prompts", hint='give JSON lines with a "prompt", or chats'
            )
        found += record_prompts(records, account)
    if not found:
        why = f": {account.reasons()}" if account.left_out else ""
        raise ConfigError(f"{path}: no prompts{why}")
    return found


def record_prompts(records: Sequence[Record], account: Account) -> list[Prompt]:
    """Return the prompts of records; those without one are counted in `account`."""
    found: list[Prompt] = []
    for record in records:
        account.read += 1
        try:
            found.append(_prompt(read_shape(record.value), category_of(record.value)))
        except Unusable as reason:
            account.leave_out(str(reason), record.place)
    return found


def _prompt(shape: Chat | str, category: str) -> Prompt:
    if isinstance(shape, str):
        raise Unusable("plain text, not a prompt")
    opening = shape.opening()
    if not any(message["role"] == "user" for message in opening.messages):
        raise Unusable("no message of a user before the first answer")
    (first, *more) = opening.messages
    if not more and not opening.tools and not category and first.keys() == {"role", "content"}:
        return str(first["content"])
    others: dict[str, Any] = {"tools": list(opening.tools)} if opening.tools else {}
    if category:
        others["category"] = category
    return {"messages": [dict(message) for message in opening.messages], **others}


def chat_of(prompt: Prompt) -> Chat:
    """Return a prompt as a chat without an answer."""
    if isinstance(prompt, str):
        return Chat(({"role": "user", "content": prompt},))
    return Chat(tuple(prompt["messages"]), tuple(prompt.get("tools", ())))


def prompt_tokens(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Return a prompt as the model reads it, up to where its answer begins."""
    chat = chat_of(prompt)
    text = in_template(tokenizer, chat.messages, tools=chat.tools, answer=True)
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens


def without_long(
    prompts: Sequence[Prompt], tokenizer: Any, most: int, account: Account
) -> list[Prompt]:
    """Return the prompts of at most `most` tokens; the others are counted in `account`."""
    kept: list[Prompt] = []
    for number, prompt in enumerate(prompts):
        if len(prompt_tokens(prompt, tokenizer)) <= most:
            kept.append(prompt)
        else:
            account.leave_out(TOO_LONG, f"prompt {number + 1}")
    return kept
