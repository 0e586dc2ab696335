"""Returns memory to the kernel; does nothing where that is not possible."""

import contextlib
import ctypes
import os
from pathlib import Path

_MADV_DONTNEED = 4


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
