"""One GGUF file under its own names: tensors in float32, dequantised row by row.

Memory holds the requested rows, whatever the size of the tensor; the `gguf` package computes them.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.gguf.header import GgufTensor, num_bytes, read_header
from specpipe.core.errors import ConfigError, Unreadable, Unsupported

if TYPE_CHECKING:
    import torch


class GgufFile:
    """An open file; reads from several threads do not disturb each other."""

    def __init__(self, path: Path) -> None:
        """Open `path`; raises what `read_header` raises."""
        self.header = read_header(path)
        self._fd = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        """Close the file; nothing can be read after that."""
        os.close(self._fd)

    def names(self) -> set[str]:
        """Return the name of every tensor, as llama.cpp has it."""
        return set(self.header.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises KeyError if there is none."""
        return self.header.tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return float32, in which every tensor is read; raises KeyError if there is none."""
        return "float32" if self.header.tensors[name] else ""

    def read(self, name: str) -> "torch.Tensor":
        """Return a whole tensor in float32; raises KeyError if there is none."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """Return the slices [begin, end) of a tensor's first dimension, in float32."""
        entry = self.header.tensors[name]
        if len(entry.shape) == 1:
            return self._read(entry, name, (1, *entry.shape), 0)[0, begin:end]
        return self._read(entry, name, (end - begin, *entry.shape[1:]), begin)

    def _read(
        self, entry: GgufTensor, name: str, shape: tuple[int, ...], skip: int
    ) -> "torch.Tensor":
        import numpy as np
        import torch
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        size = num_bytes(GgufTensor(shape, entry.kind, 0), name)
        raw = np.empty(size, dtype=np.uint8)
        self._fill(raw.data, entry.begin + skip * (size // max(shape[0], 1)))
        kind, rows = GGMLQuantizationType(entry.kind), raw.reshape(*shape[:-1], -1)
        try:
            values = dequantize(rows, kind)
        except NotImplementedError as error:
            raise Unsupported(
                f"{self.header.path}: {name} has ggml's type {kind.name}, which cannot be read",
                hint="use another quantisation of the model, or its 16-bit folder",
            ) from error
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(shape)

    def _fill(self, view: memoryview, at: int) -> None:
        while view:
            try:
                count = os.preadv(self._fd, [view], at)
            except OSError as error:
                raise Unreadable(
                    f"{self.header.path}: cannot be read: {error.strerror}",
                    hint="check that the file is there, its permissions and its disk",
                ) from error
            if count == 0:
                raise ConfigError(f"{self.header.path}: became shorter while it was read")
            view, at = view[count:], at + count
