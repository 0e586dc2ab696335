"""Paths that every program of a server takes.

Triton starts its Python models through a shell, without quotes, and they read names of files as
ASCII whatever the locale is.
"""

import re
from pathlib import PurePath

_PLAIN = re.compile(r"[A-Za-z0-9._/+@%=:,~-]+")


def is_plain(path: PurePath | str) -> bool:
    """Tell whether a path has only characters that a shell and an ASCII process take."""
    return _PLAIN.fullmatch(str(path)) is not None
