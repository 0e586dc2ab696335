"""Writes the tokenizer of a checkpoint: one tokenizer.json, and a few facts about it."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from specpipe.checkpoint.chat_files import read_templates, special_tokens
from specpipe.checkpoint.end_tokens import end_tokens
from specpipe.checkpoint.gguf.tokenizer import require_known_splitting
from specpipe.checkpoint.source import BEFORE_TOKENIZER_JSON, FURTHER_TEMPLATES, Source
from specpipe.checkpoint.tokenizer_files import (
    TokenizerFiles,
    has_tokenizer_json,
    open_tokenizer,
    parse_tokenizer,
)
from specpipe.core.chat_template import render
from specpipe.core.conversation import ChatTemplate, Conversation
from specpipe.core.errors import ConfigError, Rejection, SpecpipeError, first_few
from specpipe.core.model import ModelConfig
from specpipe.core.tokenizer import FILE, Additions

_MARK = "\ue000user text\ue000"  # private-use characters: no template contains them


@dataclass(frozen=True)
class TokenizerFacts:
    """What serving needs in addition to tokenizer.json."""

    vocab_size: int  # ids in use that have a row in the model's table, added tokens included
    end_ids: tuple[int, ...]  # any of them ends an answer; never empty
    pad_id: int
    chat: ChatTemplate | None = None  # None: the model has none
    turn_end: int | None = None  # what the template puts after an answer, if it is a special token
    additions: Additions = field(default_factory=Additions)  # to tokenizer.json
    beyond: tuple[str, ...] = ()  # added tokens without a row in the table: refused in a prompt

    def remarks(self) -> list[str]:
        """Return what is likely wrong with the files that the facts are from."""
        return [*self._about_turns(), *self._about_the_table()]

    def _about_turns(self) -> Iterator[str]:
        if self.turn_end is not None and self.turn_end not in self.end_ids:
            yield (
                f"the chat template ends a turn with token {self.turn_end}, which is no end token "
                f"({', '.join(map(str, self.end_ids))}): answers may run on; list it as "
                "'eos_token_id' in generation_config.json, as transformers needs it too"
            )

    def _about_the_table(self) -> Iterator[str]:
        if self.beyond:
            yield (
                f"the model's table has {self.vocab_size} rows and none for "
                f"{first_few(self.beyond)}: requests that contain such a token are refused; "
                "transformers fails on them"
            )


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer that was read and checked, to be written later."""

    content: bytes  # of tokenizer.json
    facts: TokenizerFacts

    def write(self, out: Path) -> TokenizerFacts:
        """Write tokenizer.json and tokenizer_facts.json into the folder `out`."""
        out.mkdir(exist_ok=True)  # there already, if a conversion was killed after this
        (out / FILE).write_bytes(self.content)
        text = json.dumps(asdict(self.facts), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (out / "tokenizer_facts.json").write_text(text, encoding="utf-8")
        return self.facts


def read_tokenizer(source: Source, model: ModelConfig) -> ReadTokenizer:
    """Read the tokenizer of a source; the bytes of its tokenizer.json are kept as they are.

    Raises ConfigError if there is no tokenizer or if it does not belong to the model, Unsupported
    without the package that reads it.
    """
    templates = read_templates(source.path)
    files = open_tokenizer(source)
    facts = _facts(files, templates, source, model)
    _require_fitting(files.tokenizer, facts, model, source)
    return ReadTokenizer(files.content, facts)


def write_tokenizer(source: Source, model: ModelConfig, out: Path) -> TokenizerFacts:
    """Write what `read_tokenizer` reads into the folder `out`; raises what it raises."""
    return read_tokenizer(source, model).write(out)


def check_tokenizer(source: Source, model: ModelConfig) -> Iterator[Rejection]:
    """Yield why `convert` would refuse the tokenizer of a source; of a .gguf file only its rule."""
    try:
        if source.path.is_file():  # its tokenizer takes seconds to make
            require_known_splitting(source.path)
        else:
            read_tokenizer(source, model)
    except SpecpipeError as error:
        yield Rejection(error.message, error.hint or "fetch the model again")


def tokenizer_files(source: Source) -> list[Path]:
    """Return the files that decide what `write_tokenizer` writes."""
    if source.path.is_file():
        return [source.path]
    names = (
        *("*token*.json", "tokenizer.model", "chat_template*", "generation_config.json"),
        f"{FURTHER_TEMPLATES}/*.jinja",
    )
    older = () if has_tokenizer_json(source) else BEFORE_TOKENIZER_JSON
    globs = (*names, *older)
    found = {file for name in globs for file in source.path.glob(name) if file.is_file()}
    return [source.path / "config.json", *sorted(found)]


def _require_fitting(
    tokenizer: Tokenizer, facts: TokenizerFacts, model: ModelConfig, source: Source
) -> None:
    rows = model.vocab_size or sys.maxsize  # not known of a model that is served unchanged
    own = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=-1) + 1
    outside = [i for i in facts.end_ids if not 0 <= i < rows]
    if own > rows or outside:
        size = max(tokenizer.get_vocab().values()) + 1
        end = outside[0] if outside else facts.end_ids[0]
        raise ConfigError(
            f"{source.path}: the tokenizer has {size} tokens and end id "
            f"{end}, but the model's vocabulary has {rows}",
            hint="the tokenizer belongs to another model",
        )
    for token in (i for i in _written(tokenizer, facts.chat) if i >= rows):
        raise ConfigError(
            f"{source.path}: the chat template writes {tokenizer.id_to_token(token)!r}, token "
            f"{token}, and the model's table has {rows} rows",
            hint="the weights were not resized for the tokenizer: fetch both from one place",
        )


def _written(tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """Return the tokens that a chat template puts around a user's message."""
    prompt = _rendered(template, Conversation.of("?"))
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    return ids


def _rendered(template: ChatTemplate | None, conversation: Conversation) -> str:
    """Return a conversation in a template; empty if the template wants other messages."""
    try:
        return render(template, conversation) if template else ""
    except ConfigError:
        return ""


def _facts(
    files: TokenizerFiles, templates: Mapping[str, str], source: Source, model: ModelConfig
) -> TokenizerFacts:
    reader, rows = files.reader, model.vocab_size or sys.maxsize
    template = ChatTemplate(templates, special_tokens(reader)) if templates else None
    end_ids = end_tokens(source, reader.eos_token_id)
    pad_id = reader.pad_token_id
    tokens = files.tokenizer.get_vocab()
    beyond = sorted((i, token) for token, i in tokens.items() if i >= rows)
    return TokenizerFacts(
        vocab_size=min(max(tokens.values()) + 1, rows),
        end_ids=end_ids,
        pad_id=end_ids[0] if pad_id is None or pad_id >= rows else int(pad_id),
        chat=template,
        turn_end=_turn_end(files.tokenizer, template),
        additions=files.additions,
        beyond=tuple(token for _, token in beyond),
    )


def _turn_end(tokenizer: Tokenizer, template: ChatTemplate | None) -> int | None:
    """Return the special token after an answer in the chat template; None if there is none."""
    turns = replace(Conversation.of("?").then("assistant", _MARK), add_generation_prompt=False)
    behind = _rendered(template, turns).partition(_MARK)[2].lstrip()
    first: Sequence[int] = tokenizer.encode(behind, add_special_tokens=False).ids[:1]
    added: Mapping[int, Any] = tokenizer.get_added_tokens_decoder()
    return next((i for i in first if i in added), None)


def read_vocabulary(source: Source) -> dict[str, int]:
    """Return every token and its id; raises what `open_tokenizer` raises."""
    if has_tokenizer_json(source):
        vocabulary: dict[str, int] = parse_tokenizer(source).get_vocab()
        return vocabulary
    vocabulary = open_tokenizer(source).tokenizer.get_vocab()
    return vocabulary


def special_ids(source: Source) -> dict[str, tuple[int, ...]]:
    """Return the ids of the begin, end and padding tokens that config.json names."""
    found = {}
    for name, key in (
        ("begin", "bos_token_id"),
        ("end", "eos_token_id"),
        ("padding", "pad_token_id"),
    ):
        value = source.hf_config.get(key)
        ids = value if isinstance(value, list) else [value]
        found[name] = tuple(sorted(i for i in ids if isinstance(i, int)))
    return {name: ids for name, ids in found.items() if ids}
