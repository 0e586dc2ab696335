"""Reads and digests the inputs of a conversion in one pass over each file.

The digest of a safetensors file is made of its tensors' (`SafetensorsFile.digest`), so tensors may
be read in any order, by several threads, and a conversion that goes on need not read again what is
noted already. What was read is proven to be of one state of the files: their stamps are compared
when they are opened and at the end.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.journal import Journal
from specpipe.checkpoint.safetensors_file import SafetensorsFile, raw_bytes
from specpipe.core.artifacts import digest_file
from specpipe.core.digests import Stamp, stamp
from specpipe.core.errors import StageFailed, Unreadable

if TYPE_CHECKING:
    import torch

JOURNAL = "read.jsonl"


def digest_content(path: Path) -> str:
    """Return the digest of a file, as `SourceReader.digests` does, in a pass of its own.

    Raises ConfigError if it should be a safetensors file and is not a whole one.
    """
    if not _holds_tensors(path):
        return digest_file(path)
    with closing(SafetensorsFile(path)) as file:
        return file.digest({})


def _holds_tensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


class SourceReader:
    """The files of a conversion, which are opened here and are not to change."""

    def __init__(self, stamps: Mapping[Path, Stamp], journal: Journal) -> None:
        self._stamps = stamps
        self._journal = journal

    def open(self, path: Path) -> "DigestedFile":
        """Open a safetensors file; raises StageFailed if it is not the one that was stamped."""
        return DigestedFile(self._open(path), partial(self._journal.add, _name(path)))

    def digests(self) -> dict[Path, str]:
        """Return the digest of every file, reading what nobody has read.

        Raises StageFailed if a file is not what it was when it was stamped.
        """
        found = {path: self._digest(path) for path in self._stamps}
        for path, before in self._stamps.items():
            if stamp(path) != before:
                raise _changed(path)
        return found

    def _open(self, path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path)
        if file.stamp() != self._stamps[path]:
            file.close()
            raise _changed(path)
        return file

    def _digest(self, path: Path) -> str:
        if not path.is_file():
            raise Unreadable(
                f"convert: {path} is not there any more",
                hint="bring it back and run the same command again; finished tensors are kept",
            )
        if not _holds_tensors(path):
            return digest_file(path)
        with closing(self._open(path)) as file:
            return file.digest(self._read_of(path))

    def _read_of(self, path: Path) -> dict[str, str]:
        noted = self._journal.digests.items()
        return {tensor: digest for (file, tensor), digest in noted if file == _name(path)}


@contextmanager
def begin_reading(stamps: Mapping[Path, Stamp], out: Path) -> Iterator[SourceReader]:
    """Read stamped files; resume from what a killed conversion recorded in `out`.

    The journal stays there only if the reading is interrupted.
    """
    with Journal(out / JOURNAL) as journal:
        yield SourceReader(stamps, journal)
    (out / JOURNAL).unlink()


def _name(path: Path) -> str:
    return str(path.absolute())


def _changed(path: Path) -> StageFailed:
    return StageFailed(
        f"convert: {path} changed while it was being converted",
        hint="wait until nothing writes to it any more, then run the same command again",
    )


class DigestedFile:
    """A `TensorReader` that digests every tensor when it is read for the first time.

    `note` is told name and sha256 of every tensor that was read to its end, perhaps by several
    threads between them, from the first row to the last.
    """

    def __init__(self, file: SafetensorsFile, note: Callable[[str, str], None]) -> None:
        self._file = file
        self._note = note
        self._digests = {name: _TensorDigest(file.size(name)) for name in file.names()}

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def names(self) -> set[str]:
        """See `TensorReader`."""
        return self._file.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorReader`."""
        return self._file.shape(name)

    def dtype(self, name: str) -> str:
        """See `TensorReader`."""
        return self._file.dtype(name)

    def read(self, name: str) -> "torch.Tensor":
        """See `TensorReader`."""
        tensor = self._file.read(name)
        self._take(name, 0, tensor)
        return tensor

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """See `TensorReader`."""
        tensor = self._file.rows(name, begin, end)
        row_bytes = tensor.nbytes // max(end - begin, 1)
        self._take(name, begin * row_bytes, tensor)
        return tensor

    def _take(self, name: str, at: int, tensor: "torch.Tensor") -> None:
        digest = self._digests[name].take(at, raw_bytes(tensor))
        if digest is not None:
            self._note(name, digest)


class _TensorDigest:
    """The sha256 of one tensor, of which each piece is taken from whoever has read it first."""

    def __init__(self, size: int) -> None:
        self._size, self._at = size, 0
        self._sha = hashlib.sha256()
        self._lock = threading.Lock()

    def take(self, at: int, piece: memoryview) -> str | None:
        """Digest the bytes from `at` on if they are the next; return the sha256 after the last."""
        with self._lock:
            if at != self._at or not piece:
                return None
            self._sha.update(piece)
            self._at += len(piece)
            return self._sha.hexdigest() if self._at == self._size else None
