"""Advises the kernel on the memory of files; does nothing where that is not possible."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from specpipe.core.machine import memory_bytes

_MADV_DONTNEED = 4
_PIECE = 512 * 1024  # of a file; the kernel may ignore what is beyond a limit of about this size


def read_ahead(files: Sequence[Path]) -> threading.Thread | None:
    """Have the kernel read files that are needed soon, while the caller goes on.

    Without it, a mapped file is read in small pieces, each when it is accessed. Returns the thread
    that asks for the pieces, None if the files and copies of them do not fit into memory together.
    """
    present = [file for file in files if file.is_file()]
    if 2 * sum(file.stat().st_size for file in present) > memory_bytes():
        return None
    thread = threading.Thread(target=_ask_for, args=(present,), daemon=True)
    thread.start()
    return thread


def _ask_for(files: Sequence[Path]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        for file in files:
            with file.open("rb") as opened:
                for start in range(0, file.stat().st_size, _PIECE):
                    os.posix_fadvise(opened.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)


def drop_mapped_pages(file: Path) -> None:
    """Drop the pages of a read-only mapped file; the kernel reads them again on access."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        for begin, end in _mappings(file.resolve()):
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def _mappings(file: Path) -> list[tuple[int, int]]:
    found = []
    for line in os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines():
        fields = line.split(maxsplit=5)
        # Pages of a mapping with "w" may hold changes of this process, which must not be dropped.
        if len(fields) == 6 and fields[5] == str(file) and "w" not in fields[1]:
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((begin, end))
    return found
