"""Writing one safetensors file tensor by tensor, so that memory holds one tensor at a time.

The format (8 bytes of header length, a JSON header, the raw data) is that of the safetensors
library, whose own writer wants every tensor in memory at once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from specpipe.contracts import Dtype

if TYPE_CHECKING:
    import torch

_NAMES: dict[Dtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "bfloat16": 2}


class SafetensorsWriter:
    """A context manager: announces all shapes, then takes the tensors in that order."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> None:
        self._path, self._dtype = path, dtype
        self._waiting = dict(shapes)

    def __enter__(self) -> "SafetensorsWriter":
        self._file: BinaryIO = self._path.open("wb")
        self._file.write(_header(self._waiting, self._dtype))
        return self

    def write(self, name: str, tensor: "torch.Tensor") -> int:
        """Append the next tensor, cast to the file's dtype; return its size in bytes.

        Raises ValueError if it is not the one announced.
        """
        import torch

        expected, shape = next(iter(self._waiting.items()))
        if (name, tuple(tensor.shape)) != (expected, shape):
            raise ValueError(f"expected {expected} {shape}, got {name} {tuple(tensor.shape)}")
        del self._waiting[name]
        plain = tensor.to(getattr(torch, self._dtype)).contiguous()
        return self._file.write(plain.view(torch.uint8).reshape(-1).numpy().data)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is None and self._waiting:
            raise ValueError(f"not written: {', '.join(self._waiting)}")


def _header(shapes: Mapping[str, tuple[int, ...]], dtype: Dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + tensor_bytes(shape, dtype)
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(shape: tuple[int, ...], dtype: Dtype) -> int:
    """Return the size of a tensor's data in bytes."""
    size = ITEM_BYTES[dtype]
    for dim in shape:
        size *= dim
    return size
