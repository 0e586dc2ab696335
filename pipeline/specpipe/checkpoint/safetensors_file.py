"""One safetensors file, read by byte ranges: memory holds only the requested rows.

A mapping would do as well, but every page of it that was touched counts as memory of the process;
reading into a small buffer that stays in the processor's cache is not slower.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.plain_files import refuse_stand_ins
from specpipe.core.artifacts import digest_json
from specpipe.core.digests import Stamp, stamp_of
from specpipe.core.errors import ConfigError, Unreadable

if TYPE_CHECKING:
    import torch

# safetensors' name of an element type -> torch's, and its size in bytes
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
_BLOCK = 1 << 22
_LONGEST_HEADER = 100_000_000  # as in the safetensors library
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies in its file."""

    dtype: str  # a key of DTYPES, or a type that is not known here
    shape: tuple[int, ...]
    begin: int  # in bytes, from the start of the file
    end: int


class SafetensorsFile:
    """An open file; reads from several threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        """Open `path` and read its header.

        Raises Unreadable if the machine refuses that, ConfigError if the file is not whole.
        """
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
            try:
                self._entries, self._header = _read_header(self._fd)
            except BaseException:
                os.close(self._fd)
                raise
        except OSError as error:
            raise _unreadable(path, error) from error
        except _DAMAGE as error:
            refuse_stand_ins([path])
            raise ConfigError(
                f"{path}: not a whole safetensors file: {error}",
                hint="fetch the file again; it may have been cut short",
            ) from error

    def close(self) -> None:
        """Close the file; nothing can be read after that."""
        os.close(self._fd)

    def stamp(self) -> Stamp:
        """Return the present state of the file that is open, whatever its path names by now."""
        return stamp_of(os.fstat(self._fd))

    def names(self) -> set[str]:
        """Return the name of every tensor."""
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises KeyError if there is none."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Return a tensor's element type as torch spells it; raises KeyError if there is none."""
        stored = self._entries[name].dtype
        return DTYPES[stored][0] if stored in DTYPES else stored

    def read(self, name: str) -> "torch.Tensor":
        """Return a whole tensor; raises KeyError if there is none."""
        entry = self._entries[name]
        return self._read(entry, entry.shape, entry.begin)

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """Return the slices [begin, end) of a tensor's first dimension."""
        entry = self._entries[name]
        row_bytes = (entry.end - entry.begin) // max(entry.shape[0], 1)
        return self._read(entry, (end - begin, *entry.shape[1:]), entry.begin + begin * row_bytes)

    def size(self, name: str) -> int:
        """Return a tensor's size in bytes; raises KeyError if there is none."""
        return self._entries[name].end - self._entries[name].begin

    def digest(self, known: Mapping[str, str]) -> str:
        """Return the digest of the whole file: of its header, and of every tensor's sha256.

        They leave no hole, so that every byte counts. Tensors whose sha256 is `known` are not read.
        """
        tensors = {name: known.get(name) or self._digest(name) for name in self._entries}
        return digest_json({"header": self._header, "tensors": tensors})

    def _digest(self, name: str) -> str:
        entry, sha = self._entries[name], hashlib.sha256()
        for at in range(entry.begin, entry.end, _BLOCK):
            block = bytearray(min(_BLOCK, entry.end - at))
            self._fill(memoryview(block), at)
            sha.update(block)
        return sha.hexdigest()

    def _read(self, entry: TensorEntry, shape: tuple[int, ...], at: int) -> "torch.Tensor":
        import torch

        tensor = torch.empty(shape, dtype=getattr(torch, DTYPES[entry.dtype][0]))
        self._fill(raw_bytes(tensor), at)
        return tensor

    def _fill(self, view: memoryview, at: int) -> None:
        while view:
            try:
                count = os.preadv(self._fd, [view], at)
            except OSError as error:
                raise _unreadable(self._path, error) from error
            if count == 0:
                raise ConfigError(f"{self._path}: became shorter while it was read")
            view, at = view[count:], at + count


def _unreadable(path: Path, error: OSError) -> Unreadable:
    return Unreadable(
        f"{path}: cannot be read: {error.strerror}",
        hint="check that the file is there, its permissions and its disk",
    )


def raw_bytes(tensor: "torch.Tensor") -> memoryview:
    """Return the bytes of a contiguous tensor, in row-major order, without a copy."""
    import torch

    return tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def _read_header(fd: int) -> tuple[dict[str, TensorEntry], str]:
    """Return where every tensor lies, and the sha256 of all that comes before the first."""
    length = int.from_bytes(os.pread(fd, 8, 0), "little")
    if length > _LONGEST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    text = os.pread(fd, 8 + length, 0)
    raw = json.loads(text[8:])
    raw.pop("__metadata__", None)
    entries = {name: _entry(name, value, 8 + length) for name, value in raw.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise ValueError("its tensors overlap or leave a hole")
        end = entry.end
    if end != (size := os.fstat(fd).st_size):
        raise ValueError(f"it has {size} bytes, its header states {end}")
    return entries, hashlib.sha256(text).hexdigest()


def _entry(name: str, value: dict[str, object], start: int) -> TensorEntry:
    dtype, shape = str(value["dtype"]), value["shape"]
    offsets = value["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list)):
        raise ValueError(f"the header's entry of {name} is damaged")
    begin, end = offsets
    size = DTYPES[dtype][1] if dtype in DTYPES else 0
    for dim in shape:
        size *= dim
    if dtype in DTYPES and size != end - begin:
        raise ValueError(f"{name} has {end - begin} bytes, its shape needs {size}")
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)
