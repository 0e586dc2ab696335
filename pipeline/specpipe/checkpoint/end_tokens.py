"""Finds the tokens that end an answer, in the files and the order that transformers reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.checkpoint.gguf.header import read_header
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.source import Source
from specpipe.core.errors import ConfigError

_INNER = (
    "decoder",
    "generator",
    "text_config",
)  # where a config of several models keeps the text's
_OF_GGUF = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def end_tokens(source: Source, of_tokenizer: int | None) -> tuple[int, ...]:
    """Return the end tokens of a model, in the order in which its files name them.

    The first of these that names any decides: generation_config.json, config.json, the text model
    within config.json, and `of_tokenizer`. `transformers.generate` takes the first three in this
    order, but goes on for ever where generation_config.json is there and names none. A .gguf file
    has end tokens of its own: of the text, of a turn and of a message, as llama.cpp reads them.
    Raises ConfigError if nothing names one, or for a value that is no token.
    """
    named = _gguf_end_tokens(source.path) if source.path.is_file() else _named_in_files(source)
    if not named and of_tokenizer is not None:
        named = (of_tokenizer,)
    if not named:
        raise ConfigError(
            f"{source.path}: generation_config.json, config.json and the tokenizer name no "
            "end-of-sequence token",
            hint='give generation_config.json an "eos_token_id"',
        )
    return named


def _named_in_files(source: Source) -> tuple[int, ...]:
    generation, config = source.path / "generation_config.json", source.path / "config.json"
    places: list[tuple[Path, Mapping[str, Any]]] = [(config, source.hf_config)]
    places += [(config, part) for name in _INNER if (part := source.hf_config.get(name))]
    if generation.is_file():
        places.insert(0, (generation, read_json(generation)))
    return next((ids for file, values in places if (ids := _read(file, values))), ())


def _read(file: Path, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens of `eos_token_id`, once each; a negative one stands for none."""
    given = values.get("eos_token_id") if isinstance(values, Mapping) else None
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise ConfigError(
                f"{file}: 'eos_token_id' is {given!r}: must be a token or a list of tokens"
            )
    return tuple(dict.fromkeys(token for token in ids if token >= 0))


def _gguf_end_tokens(path: Path) -> tuple[int, ...]:
    facts = read_header(path).facts
    found = (facts.get(name) for name in _OF_GGUF)
    return tuple(dict.fromkeys(token for token in found if isinstance(token, int)))
