"""Writes the tokenizer of a checkpoint: one tokenizer.json, and a few facts about it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specpipe.checkpoint.end_tokens import end_tokens
from specpipe.checkpoint.gguf.tokenizer import load_gguf_tokenizer
from specpipe.checkpoint.source import Source
from specpipe.core.errors import ConfigError
from specpipe.core.model import ModelConfig

_MARK = "\ue000user text\ue000"  # private-use characters: no template contains them


@dataclass(frozen=True)
class TokenizerFacts:
    """What serving needs in addition to tokenizer.json."""

    vocab_size: int  # ids in use, added tokens included
    end_ids: tuple[int, ...]  # any of them ends an answer; never empty
    pad_id: int
    chat_prefix: str  # put before and after a user's text; both empty without a chat template
    chat_suffix: str
    turn_end: int | None = None  # what the template puts after an answer, if it is a special token

    def remarks(self) -> list[str]:
        """Return what is likely wrong with the files that the facts are from."""
        if self.turn_end is None or self.turn_end in self.end_ids:
            return []
        return [
            f"the chat template ends a turn with token {self.turn_end}, which is no end token "
            f"({', '.join(map(str, self.end_ids))}): answers may run on; list it as 'eos_token_id' "
            "in generation_config.json, as transformers needs it too"
        ]


def write_tokenizer(source: Source, model: ModelConfig, out: Path) -> TokenizerFacts:
    """Write tokenizer.json and tokenizer_facts.json into the folder `out`.

    Raises ConfigError if there is no tokenizer or if it does not belong to the model.
    """
    tokenizer = _load(source)
    facts = _facts(tokenizer, source)
    _require_fitting(facts, model, source)
    out.mkdir(exist_ok=True)  # there already, if a conversion was killed after this
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    text = json.dumps(asdict(facts), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (out / "tokenizer_facts.json").write_text(text, encoding="utf-8")
    return facts


def tokenizer_files(source: Source) -> list[Path]:
    """Return the files that decide what `write_tokenizer` writes."""
    if source.path.is_file():
        return [source.path]
    names = ("*token*.json", "tokenizer.model", "chat_template*", "generation_config.json")
    found = {file for name in names for file in source.path.glob(name) if file.is_file()}
    return [source.path / "config.json", *sorted(found)]


def _require_fitting(facts: TokenizerFacts, model: ModelConfig, source: Source) -> None:
    if not model.vocab_size:  # of a model that is served unchanged
        return
    outside = [i for i in facts.end_ids if not 0 <= i < model.vocab_size]
    if facts.vocab_size > model.vocab_size or outside:
        end = outside[0] if outside else facts.end_ids[0]
        raise ConfigError(
            f"{source.path}: the tokenizer has {facts.vocab_size} tokens and end id "
            f"{end}, but the model's vocabulary has {model.vocab_size}",
            hint="the tokenizer belongs to another model",
        )


def _load(source: Source) -> Any:
    from transformers import AutoTokenizer

    try:
        if source.path.is_file():
            return load_gguf_tokenizer(source.path)
        return AutoTokenizer.from_pretrained(
            source.path, use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{source.path}: no usable tokenizer: {str(error).splitlines()[0]}",
            hint="tokenizer.json must be in the folder of config.json",
        ) from error


def _facts(tokenizer: Any, source: Source) -> TokenizerFacts:
    prefix, suffix = _chat(tokenizer)
    end_ids = end_tokens(source, tokenizer.eos_token_id)
    pad_id = tokenizer.pad_token_id
    return TokenizerFacts(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        end_ids=end_ids,
        pad_id=end_ids[0] if pad_id is None else int(pad_id),
        chat_prefix=prefix,
        chat_suffix=suffix,
        turn_end=_turn_end(tokenizer),
    )


def _chat(tokenizer: Any) -> tuple[str, str]:
    """Split the chat template of one user turn around the user's text.

    Encoding adds the beginning-of-sequence token where the tokenizer wants one, so a template that
    writes it too would double it.
    """
    if not tokenizer.chat_template:
        return "", ""
    turn = [{"role": "user", "content": _MARK}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    prefix, _, suffix = text.partition(_MARK)
    bos = tokenizer.bos_token or ""
    adds_bos = bool(bos) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    return (prefix.removeprefix(bos) if adds_bos else prefix), suffix


def _turn_end(tokenizer: Any) -> int | None:
    """Return the special token after an answer in the chat template; None if there is none."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # a template may want other turns
        return None
    behind = tokenizer(text.partition(_MARK)[2].lstrip(), add_special_tokens=False).input_ids[:1]
    return next((int(i) for i in behind if i in tokenizer.added_tokens_decoder), None)


def read_vocabulary(source: Source) -> dict[str, int]:
    """Return every token and its id; raises ConfigError if there is no tokenizer."""
    file = source.path / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        vocabulary: dict[str, int] = Tokenizer.from_file(str(file)).get_vocab()
        return vocabulary
    vocabulary = _load(source).get_vocab()
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
