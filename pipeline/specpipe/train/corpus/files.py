"""Finds the files of a training's text, and decodes them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from specpipe.core.errors import ConfigError

LINES = (".jsonl", ".ndjson")
JSON = (".json", *LINES)
TABLES = (".parquet",)
PROSE = (".txt", ".text", ".md", ".rst")  # read as text where a folder is given
_GZIP = b"\x1f\x8b"


def kind_of(file: Path) -> str:
    """Return the suffix that tells the format: lower case, without `.gz`."""
    name = file.name.lower().removesuffix(".gz")
    return Path(name).suffix


def files_of(path: Path) -> list[Path]:
    """Return a file itself; of a folder, every file below it with a known suffix, sorted.

    Hidden files and folders are left out. Raises ConfigError for a folder without such a file.
    """
    if not path.is_dir():
        return [path]
    found = sorted(file for file in _visible(path) if kind_of(file) in (*JSON, *TABLES, *PROSE))
    if not found:
        known = ", ".join((*JSON, *TABLES, *PROSE))
        raise ConfigError(f"{path}: no text in this folder", hint=f"known are files in {known}")
    return found


def _visible(folder: Path) -> Iterator[Path]:
    for entry in folder.rglob("*"):
        inside = entry.relative_to(folder).parts
        if entry.is_file() and not any(part.startswith(".") for part in inside):
            yield entry


def read_text(file: Path) -> str:
    """Return the text of a file: UTF-8, or UTF-16 with a byte order mark; gzip is unpacked.

    Raises ConfigError if it is neither, or cannot be read.
    """
    try:
        content = file.read_bytes()
        content = gzip.decompress(content) if content.startswith(_GZIP) else content
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")
