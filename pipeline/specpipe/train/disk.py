"""Describes writes that failed in a sentence, with what is left on the disk."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from specpipe.core.errors import StageFailed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FEW = 64 << 20  # bytes free: a failure that names no reason is that of a full disk
_GIB = 2**30


@contextlib.contextmanager
def explained(file: Path, kept: str) -> Iterator[None]:
    """Raise StageFailed for a full disk in a `with` block that writes `file`.

    `kept` names what is still on the disk and is used when the command is run again.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise unwritten(error, file, kept) from error


def unwritten(error: Exception, file: Path, kept: str) -> StageFailed:
    """Return the error of a file that could not be written; `kept` stays next to it."""
    place = next(folder for folder in file.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    code = error.errno if isinstance(error, OSError) else None
    full = code in _FULL or (code is None and free < _FEW)
    why = "the disk is full" if full else str(error).splitlines()[0]
    return StageFailed(
        f"train: {file} cannot be written: {why}; {kept} stay in {file.parent}",
        hint=f"free some space ({free / _GIB:.1f} GiB are free) and run the same command again, "
        "which resumes",
    )
