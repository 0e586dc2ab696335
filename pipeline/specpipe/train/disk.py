"""Describes writes that failed in a sentence, with what is left on the disk."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from specpipe.core.errors import StageFailed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FEW = 64 << 20  # bytes free: a failure that names no reason is that of a full disk
GIB = 2**30
_KEPT = {  # what a run finds again, by the names of the files
    "answers": ("answers-*", "invented-*"),
    "hidden states": ("features-*", "layers-*"),
}


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Raise StageFailed for a full disk in a `with` block that writes `file`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise unwritten(error, file) from error


def unwritten(
    error: Exception, file: Path, *, temporary: Path | None = None, checkpoint: int = 0
) -> StageFailed:
    """Return the error of a file that could not be written, and delete its `temporary` part.

    It lists what the folder of the file holds for the next run; `checkpoint` is the step of the
    file that would have been replaced, 0: there is none.
    """
    code = error.errno if isinstance(error, OSError) else None
    full = code in _FULL or (code is None and _free(file) < _FEW)
    why = "the disk is full" if full else str(error).splitlines()[0]
    if temporary is not None:
        temporary.unlink(missing_ok=True)
    return StageFailed(
        f"train: {file} cannot be written: {why}; {_left(file.parent, checkpoint)}",
        hint=f"free some space ({_free(file) / GIB:.1f} GiB are free) and run the same command "
        "again, which resumes",
    )


def _free(file: Path) -> int:
    place = next(folder for folder in file.absolute().parents if folder.exists())
    return shutil.disk_usage(place).free


def _left(folder: Path, checkpoint: int) -> str:
    """Return what stays in a folder for the next run, as the end of a sentence."""
    found = [f"the checkpoint of step {checkpoint}"] if checkpoint else []
    found += [what for what, names in _KEPT.items() if any(any(folder.glob(n)) for n in names)]
    *most, last = found or ["nothing to resume from"]
    verb = "stay" if len(found) > 1 or last in _KEPT else "stays" if found else "is"
    return f"{', '.join(most)}{' and ' * bool(most)}{last} {verb} in {folder}"
