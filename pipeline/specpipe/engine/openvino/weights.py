"""A checkpoint's tensors, mapped from disk, as OpenVINO constants: plain, int8 or int4.

Plain weights are kept in 16 bits wherever that is exact, whatever the compute type: decoding waits
for memory, and OpenVINO widens 16-bit weights on the fly.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from specpipe.contracts import Logits
from specpipe.errors import ConfigError, Unsupported

Array = NDArray[Any]
GROUP = 64  # columns that share one int4 scale


@dataclass(frozen=True)
class Weights:
    """The tensors of one checkpoint file by name; bfloat16 is held as its raw uint16."""

    tensors: dict[str, tuple[Array, str]]  # name -> (mapped array, safetensors dtype)

    def raw(self, name: str) -> tuple[Array, str]:
        """Return a mapped array and its safetensors dtype (`F32`, `F16`, `BF16`)."""
        if name not in self.tensors:
            raise ConfigError(f"the checkpoint has no tensor {name}", hint="convert it again")
        return self.tensors[name]

    def float32(self, name: str) -> Logits:
        """Return one tensor widened to float32."""
        array, dtype = self.raw(name)
        return widen(array, dtype)


def widen(array: Array, dtype: str) -> Logits:
    """Return `array` as float32; exact for every 16-bit type."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def map_weights(path: Path) -> Weights:
    """Map a safetensors file; raises ConfigError if it is not whole."""
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        data = np.memmap(path, np.uint8, "r", offset=8 + length)
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            array = data[begin:end].view(kinds[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = (array, entry["dtype"])
    except (OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"{path}: not a whole checkpoint file: {error}", hint="run `specpipe convert` again"
        ) from error
    return Weights(tensors)


def plain(array: Array, dtype: str) -> ov.Node:
    """Return the weights [n, k] as a float32 node over a constant of the smallest exact type.

    float16 is tried first, also for bfloat16: OpenVINO's fused bfloat16 MLP takes no other.
    """
    wide = widen(array, dtype)
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    if np.array_equal(half.astype(np.float32), wide):
        return op.convert(op.constant(half), "f32")
    bits = wide.view(np.uint32)
    if (bits & 0xFFFF).any():
        return op.constant(wide)
    high = (bits >> 16).astype(np.uint16)
    return op.convert(_typed(high, list(high.shape), ov.Type.bf16), "f32")


def int8(weights: Logits) -> ov.Node:
    """Quantise [n, k] symmetrically with one scale a row."""
    scale = _scale(np.abs(weights).max(axis=1, keepdims=True) / 127)
    levels = np.clip(np.rint(weights / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return op.multiply(op.convert(op.constant(levels), "f32"), _f32(scale))


def int4(weights: Logits) -> ov.Node:
    """Quantise [n, k] with one scale and zero point for every GROUP columns of a row.

    Raises Unsupported if k does not divide by GROUP.
    """
    rows, columns = weights.shape
    if columns % GROUP:
        raise Unsupported(
            f"int4 needs widths that divide by {GROUP}; {columns} does not",
            hint="use engine.quantization: int8",
        )
    groups = weights.reshape(rows, columns // GROUP, GROUP)
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    high = np.maximum(groups.max(axis=2, keepdims=True), 0)
    scale = _scale((high - low) / 15)
    wide = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / wide), 0, 15)
    levels = np.clip(np.rint(groups / wide) + zero, 0, 15)
    shifted = op.subtract(op.convert(_uint4(levels), "f32"), op.convert(_uint4(zero), "f32"))
    shape = op.constant(np.array([rows, columns], np.int64))
    return op.reshape(op.multiply(shifted, _f32(scale)), shape, False)


def _scale(values: Logits) -> NDArray[np.float16]:
    scale = values.astype(np.float16)
    scale[scale == 0] = 1
    return scale


def _f32(scale: NDArray[np.float16]) -> ov.Node:
    return op.convert(op.constant(scale), "f32")


def _uint4(levels: Array) -> ov.Node:
    flat = levels.astype(np.uint8).reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    return _typed(flat[0::2] | (flat[1::2] << 4), list(levels.shape), ov.Type.u4)


def _typed(raw: Array, shape: list[int], kind: ov.Type) -> ov.Node:
    """Return a constant of a type that numpy lacks."""
    return op.constant(ov.Tensor(raw, shape, kind), shared_memory=False)
