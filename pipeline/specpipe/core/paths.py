"""Paths that every program of a server takes.

Triton starts its Python models through a shell, without quotes, and they read names of files as
ASCII whatever the locale is.
"""

import re
from pathlib import Path, PurePath

from specpipe.core.errors import ConfigError

_PLAIN = re.compile(r"[A-Za-z0-9._/+@%=:,~-]+")


def is_plain(path: PurePath | str) -> bool:
    """Tell whether a path has only characters that a shell and an ASCII process take."""
    return _PLAIN.fullmatch(str(path)) is not None


def require_plain(folder: Path) -> None:
    """Raise ConfigError if Triton cannot take the path of a temporary folder."""
    if not is_plain(folder):
        raise ConfigError(
            f"Triton cannot take the temporary folder {folder}: it starts its models through a "
            "shell, without quotes, and they read paths as ASCII",
            hint="set TMPDIR to a folder whose path has only letters, digits and ._/-",
        )
