"""Weights [n, k] into few bits and back into TensorRT-LLM's layouts; pure functions on tensors.

Layouts as in NVIDIA Model-Optimizer's TensorRT-LLM export, which `trtllm-build` reads:

- fp8: `weight` [n, k] e4m3, one float32 scale;
- int8: `weight` [n, k], one float32 scale a row;
- int4: `weight` [n / 2, k], rows 2i and 2i + 1 in the low and high half of a byte, in two's
  complement; one scale for every `group` columns of a row;
- nvfp4: `weight` [n, k / 2], columns 2i and 2i + 1 in a byte, e2m1; an e4m3 scale for every 16
  columns of a row, and one float32 scale for the whole.

What needs float32 is done in blocks of rows, so that memory stays near the size of the tensor.
"""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FP8_MAX, INT8_MAX, INT4_MAX, FP4_MAX = 448.0, 127.0, 7.0, 6.0
FP4_GROUP = 16
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by code; bit 3 is the sign
_SMALLEST_FP8 = 2.0**-9
BLOCK_VALUES = 1 << 23  # that are converted at a time

Rows = Callable[["torch.Tensor"], "torch.Tensor"]


def by_rows(weight: "torch.Tensor", function: Rows) -> "torch.Tensor":
    """Apply a function that treats rows one by one (or in pairs) to all rows, block by block."""
    import torch

    step = max(2, BLOCK_VALUES // weight.shape[1] // 2 * 2)
    return torch.cat([function(weight[i : i + step]) for i in range(0, len(weight), step)])


def largest(weight: "torch.Tensor") -> float:
    """Return the largest magnitude in a tensor."""
    return float(by_rows(weight, lambda rows: rows.abs().amax(dim=1, keepdim=True)).amax())


def positive(scale: "torch.Tensor") -> "torch.Tensor":
    """Replace the zeros of scales, which belong to zeros only, by ones."""
    import torch

    return torch.where(scale == 0, torch.ones_like(scale), scale)


def fp8_scale(amax: float) -> float:
    """Return the scale that maps `amax` onto the largest e4m3 number."""
    return amax / FP8_MAX or 1.0


def to_fp8(weight: "torch.Tensor", scale: float) -> "torch.Tensor":
    """Return the weights over `scale` as e4m3, nearest, saturated."""
    import torch

    def rows(part: "torch.Tensor") -> "torch.Tensor":
        return (part.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)

    # torch.cat knows no float8, bytes it knows
    return by_rows(weight, lambda part: rows(part).view(torch.uint8)).view(torch.float8_e4m3fn)


def row_scale(weight: "torch.Tensor") -> "torch.Tensor":
    """Return the int8 scale [n] of every row, in float32."""
    return positive(by_rows(weight, lambda part: part.float().abs().amax(dim=1)) / INT8_MAX)


def to_int8(weight: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Return the rows over their scales [n] as int8."""
    import torch

    return (weight.float() / scale[:, None]).round().clamp(-128, 127).to(torch.int8)


def group_scale(weight: "torch.Tensor", group: int) -> "torch.Tensor":
    """Return the int4 scale [n, k / group] of every group of columns, in float32."""

    def rows(part: "torch.Tensor") -> "torch.Tensor":
        return part.float().reshape(len(part), -1, group).abs().amax(dim=2)

    return positive(by_rows(weight, rows) / INT4_MAX)


def to_int4(weight: "torch.Tensor", scale: "torch.Tensor") -> "torch.Tensor":
    """Return the weights over their scales [n, k / group] as packed int4 [n / 2, k]."""
    import torch

    groups = weight.float().reshape(len(weight), scale.shape[1], -1)
    levels = (groups / scale.float()[:, :, None]).round().clamp(-8, 7).to(torch.int8)
    return pack_int4(levels.reshape(weight.shape))


def pack_int4(levels: "torch.Tensor") -> "torch.Tensor":
    """Pack whole numbers in [-8, 7], [n, k], into bytes [n / 2, k]: even rows below, odd above."""
    import torch

    halves = levels.view(torch.uint8) & 0x0F
    return (halves[0::2] | (halves[1::2] << 4)).view(torch.int8)


def unpack_int4(packed: "torch.Tensor") -> "torch.Tensor":
    """Undo `pack_int4`."""
    import torch

    pairs = torch.stack([packed << 4, packed], dim=1)  # arithmetic shifts extend the sign
    return (pairs >> 4).reshape(2 * len(packed), packed.shape[1])


def fp4_scale(weight: "torch.Tensor", whole: float) -> "torch.Tensor":
    """Return the e4m3 scale [n, k / 16] of every group, as bytes, given the whole's scale."""
    import torch

    def rows(part: "torch.Tensor") -> "torch.Tensor":
        amax = part.float().reshape(len(part), -1, FP4_GROUP).abs().amax(dim=2)
        scale = positive(amax / (FP4_MAX * whole)).clamp(_SMALLEST_FP8, FP8_MAX)
        return scale.to(torch.float8_e4m3fn).view(torch.uint8)

    return by_rows(weight, rows).view(torch.float8_e4m3fn)


def to_fp4(weight: "torch.Tensor", scale: "torch.Tensor", whole: float) -> "torch.Tensor":
    """Return the weights over group scale times whole scale as packed e2m1 [n, k / 2]."""
    import torch

    groups = weight.float().reshape(len(weight), -1, FP4_GROUP)
    scaled = groups / (scale.float() * whole)[:, :, None]
    return pack_fp4(_nearest_fp4(scaled.reshape(weight.shape)).to(torch.uint8))


def _nearest_fp4(values: "torch.Tensor") -> "torch.Tensor":
    """Return the code of the nearest e2m1 number; halfway, the even code."""
    import torch

    steps = torch.tensor([(a + b) / 2 for a, b in itertools.pairwise(FP4_VALUES)])
    code = torch.bucketize(values.abs(), steps)  # halfway: the lower code
    odd = code % 2 == 1
    halfway = values.abs() == steps[code.clamp(max=len(steps) - 1)]
    return code + (odd & halfway) + 8 * (values < 0)


def pack_fp4(codes: "torch.Tensor") -> "torch.Tensor":
    """Pack codes [n, k] into bytes [n, k / 2]: even columns below, odd above."""
    return codes[:, 0::2] | (codes[:, 1::2] << 4)
