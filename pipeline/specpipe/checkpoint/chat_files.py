"""Reads the chat templates of a source, which may be in four places.

The precedence is that of transformers: files of their own, then tokenizer_config.json. A
chat_template.json, which transformers reads for processors of images only, comes last.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.checkpoint.gguf.header import read_header
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.source import FURTHER_TEMPLATES
from specpipe.core.chat_template import require_parsable
from specpipe.core.conversation import DEFAULT
from specpipe.core.errors import ConfigError

_FILE, _KEY, _IN_GGUF = "chat_template.jinja", "chat_template", "tokenizer.chat_template"


def read_templates(place: Path) -> dict[str, str]:
    """Return the chat templates of a folder or a .gguf file by name; empty if it has none.

    Raises ConfigError if a template has no text or does not parse.
    """
    templates = _of_gguf(place) if place.is_file() else _of_folder(place)
    require_parsable(templates, str(place))
    return templates


def special_tokens(reader: Any) -> dict[str, Any]:
    """Return the special tokens of a tokenizer of transformers by name: a text or a list each."""
    return {
        name: [str(one) for one in token] if isinstance(token, (list, tuple)) else str(token)
        for name, token in sorted(reader.special_tokens_map.items())
    }


def _of_folder(folder: Path) -> dict[str, str]:
    files = {file.stem: file for file in sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))}
    if (folder / _FILE).is_file():
        files[DEFAULT] = folder / _FILE
    if files:
        return {name: _text(file) for name, file in files.items()}
    for name in ("tokenizer_config.json", "chat_template.json"):
        value = read_json(folder / name).get(_KEY) if (folder / name).is_file() else None
        if value:
            return _named(value, folder / name)
    return {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error


def _named(value: object, file: Path) -> dict[str, str]:
    """Return templates by name, from one text or from a list of objects."""
    if isinstance(value, str):
        return {DEFAULT: value}
    found = {}
    for one in value if isinstance(value, list) else [value]:
        name, text = (one.get("name"), one.get("template")) if isinstance(one, dict) else (0, 0)
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(
                f"{file}: '{_KEY}' must be a text, or a list of objects with 'name' and 'template'"
            )
        found[name] = text
    return found


def _of_gguf(file: Path) -> dict[str, str]:
    facts: Mapping[str, Any] = read_header(file).facts
    found = {
        key.removeprefix(_IN_GGUF).removeprefix(".") or DEFAULT: value
        for key, value in facts.items()
        if key == _IN_GGUF or key.startswith(f"{_IN_GGUF}.")
    }
    return {name: value for name, value in found.items() if isinstance(value, str)}
