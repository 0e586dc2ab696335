"""Writes one safetensors file in pieces: in any order, several at a time, from any thread.

The format (8 bytes of header length, a JSON header, the raw data) is that of the safetensors
library, whose own writer wants every tensor in memory at once. Since the header states where each
tensor lies, each piece can be written to its place, and digested on the way.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from specpipe.checkpoint.safetensors_file import DTYPES, raw_bytes

if TYPE_CHECKING:
    import torch

_NAMES = {torch_name: (name, size) for name, (torch_name, size) in DTYPES.items()}
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Announced:
    """What will be written: a shape and an element type as torch spells it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes of the data."""
        size = _NAMES[self.dtype][1]
        for dim in self.shape:
            size *= dim
        return size


class SafetensorsWriter:
    """A context manager: announces all tensors, then takes each in pieces.

    A file that is already there with the same header is completed: `holds` tells which of its
    tensors have the bytes they should have.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Announced]) -> None:
        self._path = path
        self._announced = dict(tensors)
        self._begins, self._header = _layout(self._announced)
        self._finished: set[str] = set()

    def __enter__(self) -> "SafetensorsWriter":
        size = len(self._header) + sum(a.size for a in self._announced.values())
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        same = os.fstat(self._fd).st_size == size
        if not same or os.pread(self._fd, len(self._header), 0) != self._header:
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, size)
            _write_all(self._fd, memoryview(self._header), 0)
        return self

    def begin(self, name: str) -> "Sink":
        """Return where the pieces of one tensor go; raises ValueError if none was announced."""
        if name not in self._announced:
            raise ValueError(f"{name} was not announced")
        return Sink(self, name, self._announced[name], self._fd, self._begins[name])

    def write(self, name: str, tensor: "torch.Tensor") -> str:
        """Write a whole tensor of the announced shape and type; return its sha256."""
        sink = self.begin(name)
        sink.write(tensor)
        return sink.finish()

    def holds(self, name: str, digest: str) -> bool:
        """Tell whether a tensor's bytes in the file have this sha256; if so, it is finished."""
        if name not in self._announced:
            return False
        sha, at = hashlib.sha256(), self._begins[name]
        end = at + self._announced[name].size
        while at < end and (block := os.pread(self._fd, min(_BLOCK, end - at), at)):
            sha.update(block)
            at += len(block)
        if sha.hexdigest() != digest:
            return False
        self._finished.add(name)
        return True

    def finished(self, name: str) -> None:
        """Note that a tensor is whole."""
        self._finished.add(name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        missing = sorted(self._announced.keys() - self._finished)
        if kind is None and missing:
            raise ValueError(f"not written: {', '.join(missing)}")


class Sink:
    """One tensor of a file, which takes its pieces from the first to the last."""

    def __init__(
        self, writer: SafetensorsWriter, name: str, announced: Announced, fd: int, at: int
    ) -> None:
        self._writer, self._name, self._announced = writer, name, announced
        self._fd, self._at, self._end = fd, at, at + announced.size
        self._sha = hashlib.sha256()

    def write(self, piece: "torch.Tensor") -> None:
        """Append the next values in row-major order.

        Raises ValueError if they are of another type, or more than were announced.
        """
        import torch

        if piece.dtype != getattr(torch, self._announced.dtype):
            raise ValueError(f"{self._name} is {self._announced.dtype}, the piece {piece.dtype}")
        if self._at + piece.nbytes > self._end:
            raise ValueError(f"{self._name} is longer than {self._announced.shape}")
        if not piece.nbytes:
            return
        block = raw_bytes(piece.contiguous())
        self._sha.update(block)
        _write_all(self._fd, block, self._at)
        self._at += len(block)

    def finish(self) -> str:
        """Return the sha256 of the tensor's bytes; raises ValueError if some are missing."""
        if self._at != self._end:
            raise ValueError(f"{self._name} is shorter than {self._announced.shape}")
        self._writer.finished(self._name)
        return self._sha.hexdigest()


def _layout(tensors: Mapping[str, Announced]) -> tuple[dict[str, int], bytes]:
    """Return where each tensor begins in the file, and the file's header.

    Wide element types come first, as in the library's files, so that every value is aligned.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, offset = {}, 0
    widths = {name: _NAMES[announced.dtype][1] for name, announced in tensors.items()}
    for name, announced in sorted(tensors.items(), key=lambda item: -widths[item[0]]):
        begins[name] = offset
        offset += announced.size
        entries[name] = {
            "dtype": _NAMES[announced.dtype][0],
            "shape": list(announced.shape),
            "data_offsets": [begins[name], offset],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return {name: len(header) + begin for name, begin in begins.items()}, header


def _write_all(fd: int, block: memoryview, at: int) -> None:
    while block:
        count = os.pwrite(fd, block, at)
        block, at = block[count:], at + count
