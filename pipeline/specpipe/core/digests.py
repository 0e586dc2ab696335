"""Digests of files, cached while the files do not change.

Untouched means the same size, inode, modification time and change time. The last is set by the
kernel at every write and cannot be set back, so that tools which restore modification times do not
deceive. A file that changed in the two seconds before it was read is not remembered: where clocks
are coarse, another change could leave the same times.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.core.artifacts import write_text

_SETTLED_NS = 2 * 10**9  # FAT counts in steps of two seconds, most others in nanoseconds


@dataclass(frozen=True)
class Stamp:
    """In which state a file was seen; another stamp may mean other bytes, the same one does not."""

    text: str
    settled: bool = field(compare=False, default=True)  # a later change gives another stamp


def stamp(path: Path) -> Stamp:
    """Return the present stamp of a file; raises OSError if there is none."""
    return stamp_of(path.stat())


def stamp_of(stat: os.stat_result) -> Stamp:
    """Return the stamp of an open file, from the result of `os.fstat`."""
    text = f"{stat.st_size}:{stat.st_ino}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return Stamp(text, time.time_ns() - stat.st_ctime_ns > _SETTLED_NS)


def remembered(path: Path, memory: Path | None, digest: Callable[[Path], str]) -> str:
    """Return `digest(path)`, without reading the file where `memory`, a small JSON file, has it."""
    if memory is None:
        return digest(path)
    seen = stamp(path)
    known = _read(memory).get(str(path), {})
    if known.get("stamp") == seen.text:
        return known["sha256"]
    value = digest(path)
    remember(memory, {path: seen}, {path: value})
    return value


def remember(memory: Path, stamps: Mapping[Path, Stamp], digests: Mapping[Path, str]) -> None:
    """Note the digests of files that were in these states before they were read.

    Where nothing can be written, in a read-only workspace, nothing is noted.
    """
    known = _read(memory)
    for path, seen in stamps.items():
        if seen.settled:
            known[str(path)] = {"stamp": seen.text, "sha256": digests[path]}
    with contextlib.suppress(OSError):
        write_text(memory, json.dumps(known, indent=1, sort_keys=True))


def _read(memory: Path) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
