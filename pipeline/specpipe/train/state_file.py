"""A file of hidden states, document after document, that a killed process resumes.

Several processes may write it, each its own batches of documents, at their places.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from specpipe.core.artifacts import write_text
from specpipe.core.errors import StageFailed
from specpipe.train.disk import GIB, explained
from specpipe.train.placement import HERE, TrainingPlace

Progress = Callable[[int, int], None]
_DONE = "batches, longest documents first"  # the journal's key: it names their order
BATCH = 8  # documents that are computed together; the files are equal up to rounding


@dataclass(frozen=True, eq=False)
class StateFile:
    """A file that is about to be written; its name appears only when it is whole."""

    file: Path
    sizes: Sequence[int]  # bytes of each document
    lengths: Sequence[int]  # tokens of each document: those of like length are computed together
    compute: Callable[[Sequence[int]], Iterable[bytes]]  # the content of some documents, in order
    placement: TrainingPlace = HERE
    sync_s: float = 20.0  # of work that a killed process loses at most, and one batch more

    def require(self, progress: Progress) -> None:
        """Write the file if it is not there; resume what an interrupted run has written.

        Raises StageFailed if there is no room for it, or if the disk becomes full.
        """
        self.placement.wait()  # or else a process could see the file of a faster one
        if self.file.is_file():
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._require_room()
        with explained(self.file):
            self._write(progress)

    @property
    def temporary(self) -> Path:
        """Where it lies until it is whole."""
        return self.file.with_suffix(".tmp")

    @property
    def journal(self) -> Path:
        """Counts this process's batches that are on the disk."""
        return self.file.with_suffix(f".{self.placement.rank}of{self.placement.world}")

    @property
    def begins(self) -> list[int]:
        """The first byte of each document, and the size of the file."""
        return list(accumulate(self.sizes, initial=0))

    def done(self) -> int:
        """Return how many batches of this process an interrupted run has written."""
        try:
            whole = self.temporary.stat().st_size == self.begins[-1]
            text = self.journal.read_text(encoding="utf-8")
            return int(json.loads(text)[_DONE]) if whole else 0
        except (OSError, ValueError, KeyError):
            return 0

    def _require_room(self) -> None:
        written = self.temporary.stat().st_blocks * 512 if self.temporary.is_file() else 0
        needed, free = self.begins[-1] - written, shutil.disk_usage(self.file.parent).free
        if needed > free:
            raise StageFailed(
                f"train: the hidden states need {needed / GIB:.1f} GiB in {self.file.parent}, "
                f"where {free / GIB:.1f} GiB are free",
                hint="free some space and run the same command again, give less text, or set "
                "train.out to another disk",
            )

    def _write(self, progress: Progress) -> None:
        done = self.done()
        self.placement.wait()
        if self.placement.is_first and not self.temporary.exists():
            self.temporary.touch()
            os.truncate(self.temporary, self.begins[-1])
        self.placement.wait()
        self._write_own(done, progress)
        self.placement.wait()
        if self.placement.is_first:
            self.temporary.replace(self.file)
        self.journal.unlink(missing_ok=True)
        self.placement.wait()

    def _write_own(self, done: int, progress: Progress) -> None:
        """Write this process's batches after the first `done`, and count them in the journal."""
        batches = self.placement.own(range(math.ceil(len(self.sizes) / BATCH)))
        order = sorted(range(len(self.lengths)), key=lambda i: (-self.lengths[i], i))
        begins, synced = self.begins, time.monotonic()
        with self.temporary.open("r+b") as out:
            os.truncate(out.fileno(), begins[-1])
            for number in range(done, len(batches)):
                end = (batches[number] + 1) * BATCH
                chosen = order[end - BATCH : end]
                for document, content in zip(chosen, self.compute(chosen), strict=True):
                    out.seek(begins[document])
                    out.write(content)
                if time.monotonic() - synced >= self.sync_s:
                    _sync(out.fileno(), out.flush)
                    write_text(self.journal, json.dumps({_DONE: number + 1}))
                    synced = time.monotonic()
                progress(min(end, len(self.sizes)), len(self.sizes))
            _sync(out.fileno(), out.flush)
        write_text(self.journal, json.dumps({_DONE: len(batches)}))


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)
