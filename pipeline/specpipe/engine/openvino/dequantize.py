"""Dequantization of a checkpoint's tensors to float32, in numpy.

The CPU engine uses it to check what a GPU will compute. `checkpoint.quantized.arithmetic` writes
and describes the layouts. `zero` is the zero point of AWQ and GPTQ checkpoints, [k / group, n].
Tensors of stacked experts have one more leading dimension.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Logits

Array = NDArray[Any]
STORED = {"I8": np.int8, "U8": np.uint8, "F8_E4M3": np.uint8}  # safetensors' type -> as mapped
_FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_FP4_GROUP = 16


def _fp8_table() -> Logits:
    """Return the value of every e4m3 byte: sign, 4 bits of exponent, 3 of mantissa; no infinity."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7).astype(np.float32)
    normal = (1 + mantissa / 8) * np.exp2(exponent - 7.0)
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)
    value[(code & 127) == 127] = np.nan
    signed: Logits = (np.where(code & 128, -1, 1) * value).astype(np.float32)
    return signed


FP8 = _fp8_table()


def from_fp8(stored: Array, scale: Logits) -> Logits:
    """Return e4m3 bytes [n, k] times one scale [1]; for experts [E, n, k] times scales [E, 1]."""
    return FP8[stored] * (scale[:, :, None] if stored.ndim > 2 else scale)


def from_int8(stored: Array, scale: Logits) -> Logits:
    """Return whole numbers [n, k] times the scale of their row [n]."""
    return stored.astype(np.float32) * scale[:, None]


def from_int4(packed: Array, scale: Logits, zero: Logits | None) -> Logits:
    """Return packed int4 [n / 2, k] times group scales [n, k / group], plus `zero`."""
    if packed.ndim > 2:
        zeros = [None] * len(packed) if zero is None else list(zero)
        return np.stack([from_int4(*expert) for expert in zip(packed, scale, zeros, strict=True)])
    wide = packed.astype(np.int8)
    halves = np.stack([(wide << 4) >> 4, wide >> 4], axis=1)  # shifts extend the sign
    rows, groups = scale.shape
    levels = halves.reshape(rows, groups, -1).astype(np.float32)
    values = levels * scale[:, :, None]
    if zero is not None:
        values += zero.T[:, :, None]
    flat: Logits = values.reshape(rows, -1)
    return flat


def from_fp4(packed: Array, scale: Array, whole: Logits) -> Logits:
    """Return packed e2m1 [n, k / 2] times e4m3 group scales [n, k / 16] times one scale [1]."""
    codes = np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)
    values = np.where(codes & 8, -1, 1).astype(np.float32) * _FP4[codes & 7]
    groups = values.reshape(len(packed), -1, _FP4_GROUP) * (FP8[scale] * whole)[:, :, None]
    flat: Logits = groups.reshape(len(packed), -1)
    return flat
