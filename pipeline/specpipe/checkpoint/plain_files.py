"""Reads JSON files, and refuses files that stand for others: pointers of git-lfs and web pages.

Not here: files of tensors.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specpipe.core.errors import ConfigError

AGAIN = "fetch the folder again, for example with `hf download owner/name --local-dir FOLDER`"
_POINTER, _PAGES = b"version https://git-lfs", (b"<!doctype", b"<html", b"<?xml")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; raises ConfigError if it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        refuse_stand_ins([path])
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return value


def refuse_stand_ins(files: Iterable[Path]) -> None:
    """Raise ConfigError for the first file that is a pointer of git-lfs or a web page."""
    for file in files:
        try:
            with file.open("rb") as opened:
                first = opened.read(64)
        except OSError:  # whoever needs its content will name it
            continue
        if first.startswith(_POINTER):
            raise ConfigError(
                f"{file}: a pointer of git-lfs, not the file itself",
                hint=f"run `git lfs pull` in {file.parent}, or {AGAIN}",
            )
        if first.lstrip().lower().startswith(_PAGES):
            raise ConfigError(
                f"{file}: a web page, not the file itself",
                hint=f"the download needs a login or another address; {AGAIN}",
            )
