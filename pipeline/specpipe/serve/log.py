"""A server's log: one file of bounded size per server, and the cause of a failure in it.

The server writes to the file directly, so the file has its last lines after any crash, and no
thread of specpipe can block the server. `ServerLog` rotates the file: it copies the content into an
older file and then truncates the file. A line written between these two operations may be lost.
"""

import contextlib
import fcntl
import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from specpipe.core.errors import ConfigError
from specpipe.core.processes import last_lines

LIMIT_BYTES = 32 << 20  # of one file
KEPT = 3  # older files: tritonserver.log.1 is the newest of them
TEND_SECONDS = 0.2
_SERVERS = 16  # servers of one run that may write at the same time

Show = Callable[[bytes], None]


@dataclass
class ServerLog:
    """A locked log; the server appends to `file`."""

    path: Path
    file: BinaryIO
    limit_bytes: int = LIMIT_BYTES
    show: Show | None = None
    _shown: int = 0

    def tend(self) -> None:
        """Show new lines, and rotate a file that is too long; a full disk raises nothing."""
        with contextlib.suppress(OSError):
            self._show_new()
            if self.path.stat().st_size > self.limit_bytes:
                self.rotate()

    def rotate(self) -> None:
        """Move the content of the file into `<name>.1`, that of `.1` into `.2`, and so on."""
        older = [Path(f"{self.path}.{number}") for number in range(1, KEPT + 1)]
        for newer, old in reversed(list(itertools.pairwise(older))):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(old)
        try:
            shutil.copyfile(self.path, older[0])
        except OSError:  # the disk is full; truncating the file frees space
            older[0].unlink(missing_ok=True)
        self._show_new()
        self.file.truncate(0)
        self._shown = 0

    def _show_new(self) -> None:
        if self.show is None:
            return
        with self.path.open("rb") as reader:
            reader.seek(self._shown)
            text = reader.read()
        self._shown += len(text)
        if text:
            self.show(text)


@contextlib.contextmanager
def claimed_log(
    path: Path, show: Show | None = None, *, limit_bytes: int = LIMIT_BYTES
) -> Iterator[ServerLog]:
    """Yield an empty log for one server: `path`, or `<name>-2` while another server writes there.

    The log is rotated while the block runs; `show` receives all output. The output of an earlier
    server is kept as an older file.
    """
    file, place = _claim(path)
    with file:
        log = ServerLog(place, file, limit_bytes)
        if place.stat().st_size:
            log.rotate()
        log.show = show
        ended = threading.Event()
        thread = threading.Thread(target=_tend, args=(log, ended), name="server-log", daemon=True)
        thread.start()
        try:
            yield log
        finally:
            ended.set()
            thread.join()


def _tend(log: ServerLog, ended: threading.Event) -> None:
    while not ended.wait(TEND_SECONDS):
        log.tend()
    log.tend()


def _claim(path: Path) -> tuple[BinaryIO, Path]:
    """Open and lock the first unused log; the server inherits the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, _SERVERS + 1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        file = place.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if place.exists() and os.path.samestat(os.fstat(file.fileno()), place.stat()):
                return file, place
        except BlockingIOError:
            pass
        file.close()
    raise ConfigError(
        f"{path}: {_SERVERS} servers of this run write logs there already",
        hint="stop some of them, or serve a copy of the repository",
    )


# Lines that Triton prints on every machine without a GPU, and the summary after the cause.
_NO_CAUSE = re.compile(
    r"^\||NVML|CudaDriverHelper|DCGM|pinned system memory|failed to load all models|^Error: *$"
)
_ERROR = re.compile(r"^E\d{4} |[Ee]rror:|\bERROR\b")
_PREFIX = re.compile(r"^[EWIF]\d{4} \S+ +\d+ \S+\] ")


def find_cause(log: Path) -> str:
    """Return the last line of a log that names a cause, without Triton's prefix."""
    lines = last_lines(log, 1000, 1 << 20)
    telling = [line for line in lines if line.strip() and not _NO_CAUSE.search(line)]
    errors = [line for line in telling if _ERROR.search(line)]
    found = (errors or telling or ["it printed no cause" if lines else "no output"])[-1].strip()
    sentence = _PREFIX.sub("", found).strip('"').split("\\n\\nAt:")[0]
    return sentence.replace("\\n", " ").strip()[-400:]
