"""A checkpoint's tensors, mapped from disk, as OpenVINO constants: plain, int8 or int4.

Plain weights are kept in 16 bits wherever that is exact, for every compute type: decoding is bound
by memory bandwidth, and OpenVINO widens 16-bit weights on the fly. Checkpoints quantized for GPUs
are dequantized to float32, with inputs rounded as on the GPU, so that their accuracy can be
measured on the CPU.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from specpipe.core.contracts import Logits
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.openvino.dequantize import STORED, from_fp4, from_fp8, from_int4, from_int8

Array = NDArray[Any]
GROUP = 64  # columns that share one int4 scale
BLOCK_VALUES = 1 << 20  # weights that are converted at a time


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a quantized layer rounds its inputs before the multiplication."""

    kind: Literal["int8", "fp8"]
    step: float  # value of one unit
    scale: Logits | None  # [k]  multiplied first


@dataclass(frozen=True)
class Weights:
    """The tensors of one checkpoint file by name; bfloat16 is held as its raw uint16."""

    tensors: dict[str, tuple[Array, str]]  # name -> (mapped array, safetensors dtype)

    def raw(self, name: str) -> tuple[Array, str]:
        """Return an array and its safetensors dtype (`F32`, `F16`, `BF16`), mapped if plain."""
        array, dtype = self._stored(name)
        if dtype in STORED and name.endswith("weight"):
            return self._dequantized(name, array, dtype), "F32"
        return array, dtype

    def rounding(self, name: str) -> "Rounding | None":
        """Return how the inputs of a quantized layer are rounded; None if they are not.

        The activations of nvfp4 are not rounded: their scales follow from the values.
        """
        step = self._beside(name, "activation_scaling_factor")
        if step is None or self._stored(name)[1] == "U8":
            return None
        return Rounding(
            "fp8" if self._stored(name)[1] == "F8_E4M3" else "int8",
            float(step[0]),
            self._beside(name, "prequant_scaling_factor"),
        )

    def _stored(self, name: str) -> tuple[Array, str]:
        if name not in self.tensors:
            raise ConfigError(
                f"the checkpoint has no tensor {name}", hint="run `specpipe convert` again"
            )
        return self.tensors[name]

    def _beside(self, name: str, kind: str) -> Logits | None:
        other = f"{name.removesuffix('weight')}{kind}"
        return self.float32(other) if other in self.tensors else None

    def _dequantized(self, name: str, array: Array, dtype: str) -> Logits:
        if dtype == "U8":
            scales = self._stored(f"{name.removesuffix('weight')}weights_scaling_factor")[0]
            return from_fp4(array, scales, self._need(name, "weights_scaling_factor_2"))
        scale = self._need(name, "weights_scaling_factor")
        if dtype == "F8_E4M3":
            return from_fp8(array, scale)
        if scale.ndim == 1:
            return from_int8(array, scale)
        values = from_int4(array, scale, self._beside(name, "zero"))
        inputs = self._beside(name, "prequant_scaling_factor")
        return values if inputs is None else values * inputs

    def _need(self, name: str, kind: str) -> Logits:
        return self.float32(f"{name.removesuffix('weight')}{kind}")

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
    kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, **STORED}
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
            f"{path}: the checkpoint file is incomplete or damaged: {error}",
            hint="run `specpipe convert` again",
        ) from error
    return Weights(tensors)


def plain(array: Array, dtype: str) -> ov.Node:
    """Return the weights [n, k] as a float32 node over a constant of the smallest exact type.

    float16 is tried first, also for bfloat16: OpenVINO's fused bfloat16 MLP takes no other.
    """
    for kind, convert in ((ov.Type.f16, _as_float16), (ov.Type.bf16, _as_bfloat16)):
        found = _converted(array, dtype, convert)
        if found is not None:
            return op.convert(_typed(found, list(array.shape), kind), "f32")
    return op.constant(widen(array, dtype))


def int8(array: Array, dtype: str = "F32") -> ov.Node:
    """Quantize [n, k] symmetrically with one scale per row."""
    levels, scales = np.empty(array.shape, np.int8), np.empty((len(array), 1), np.float16)
    for rows in _blocks(array):
        wide = widen(array[rows], dtype)
        scales[rows] = _scale(np.abs(wide).max(axis=1, keepdims=True) / 127)
        wide /= scales[rows].astype(np.float32)
        levels[rows] = np.clip(np.rint(wide, out=wide), -127, 127, out=wide)
    return op.multiply(op.convert(op.constant(levels), "f32"), _f32(scales))


def int4(array: Array, dtype: str = "F32") -> ov.Node:
    """Quantize [n, k] with one scale and zero point for every GROUP columns of a row.

    Raises Unsupported if k is not a multiple of GROUP.
    """
    count, columns = array.shape
    if columns % GROUP:
        raise Unsupported(
            f"int4 needs layer widths that are multiples of {GROUP}; {columns} is not",
            hint="use engine.quantization: int8",
        )
    shape = count, columns // GROUP
    packed = np.empty((count, columns // 2), np.uint8)
    zeros, scales = np.empty((*shape, 1), np.uint8), np.empty((*shape, 1), np.float16)
    for rows in _blocks(array):
        groups = widen(array[rows], dtype).reshape(-1, *shape[1:], GROUP)
        levels, zeros[rows], scales[rows] = _group_levels(groups)
        packed[rows] = _pack(levels).reshape(-1, columns // 2)
    whole, zero = (
        op.convert(_typed(raw, [*shape, width], ov.Type.u4), "f32")
        for raw, width in ((packed, GROUP), (_pack(zeros), 1))
    )
    flat = op.constant(np.array([count, columns], np.int64))
    return op.reshape(op.multiply(op.subtract(whole, zero), _f32(scales)), flat, False)


def _group_levels(groups: Logits) -> tuple[Logits, Logits, NDArray[np.float16]]:
    """Return levels [n, g, GROUP], zero points and scales [n, g, 1] of groups [n, g, GROUP]."""
    low = np.minimum(groups.min(axis=2, keepdims=True), 0)
    high = np.maximum(groups.max(axis=2, keepdims=True), 0)
    scale = _scale((high - low) / 15)
    wide = scale.astype(np.float32)
    zero = np.clip(np.rint(-low / wide), 0, 15)
    return np.clip(np.rint(groups / wide) + zero, 0, 15), zero, scale


def _blocks(array: Array) -> Iterator[slice]:
    """Yield ranges of rows that together have few values, so that float32 copies stay small."""
    step = max(1, BLOCK_VALUES // max(1, array[:1].size))
    for begin in range(0, len(array), step):
        yield slice(begin, begin + step)


def _converted(array: Array, dtype: str, convert: Callable[[Logits], Array | None]) -> Array | None:
    """Convert an array block by block; None if `convert` is not exact for one of them."""
    found = np.empty(array.shape, np.uint16)
    for rows in _blocks(array):
        bits = convert(widen(array[rows], dtype))
        if bits is None:
            return None
        found[rows] = bits
    return found


def _as_float16(wide: Logits) -> Array | None:
    with np.errstate(over="ignore"):
        half = wide.astype(np.float16)
    return half.view(np.uint16) if np.array_equal(half.astype(np.float32), wide) else None


def _as_bfloat16(wide: Logits) -> Array | None:
    bits = wide.view(np.uint32)
    return None if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)


def _scale(values: Logits) -> NDArray[np.float16]:
    scale = values.astype(np.float16)
    scale[scale == 0] = 1
    return scale


def _f32(scale: NDArray[np.float16]) -> ov.Node:
    return op.convert(op.constant(scale), "f32")


def _pack(levels: Array) -> Array:
    """Return 4-bit numbers as bytes, two in each."""
    flat = levels.astype(np.uint8).reshape(-1)
    flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
    packed: Array = flat[0::2] | (flat[1::2] << 4)
    return packed


def _typed(raw: Array, shape: list[int], kind: ov.Type) -> ov.Node:
    """Return a constant of a type that numpy lacks."""
    return op.constant(ov.Tensor(raw, shape, kind), shared_memory=False)


def rounded(x: ov.Node, how: Rounding, scale: Logits | None) -> ov.Node:
    """Round inputs [1, M, k] as a quantized layer does.

    They are first multiplied by `scale` [k] (`how.scale`, reordered). int8 and 8-bit floats
    saturate.
    """
    if scale is not None:
        x = op.multiply(x, op.constant(scale.reshape(1, 1, -1).astype(np.float32)))
    step = _scalar(how.step)
    units = op.divide(x, step)
    if how.kind == "int8":
        units = op.clamp(op.round(units, "half_to_even"), -128.0, 127.0)
    else:
        units = _nearest_e4m3(op.clamp(units, -448.0, 448.0))
    return op.multiply(units, step)


def _nearest_e4m3(x: ov.Node) -> ov.Node:
    """Round to three bits after the leading one; the plugin's own op rounds to 16 bits first.

    A rounding error of the logarithm moves only numbers next to a power of two into the wrong
    binade. Such numbers round to that power in both binades.
    """
    size = op.maximum(op.abs(x), _scalar(2.0**-9))
    exponent = op.floor(op.multiply(op.log(size), _scalar(1 / np.log(2))))
    step = op.power(_scalar(2.0), op.subtract(op.maximum(exponent, _scalar(-6.0)), _scalar(3.0)))
    return op.multiply(op.round(op.divide(x, step), "half_to_even"), step)


def _scalar(value: float) -> ov.Node:
    return op.constant(np.full((1, 1, 1), value, np.float32))
