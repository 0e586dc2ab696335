"""Stand-ins for the operators and plugins of weights in 4 and 8 bits.

What C++ packs for its kernels stays readable here: int8 weights as they are, int4 weights two in a
byte, the low half first.
"""

from typing import Any

import torch

from upstream_check.network import PLUGINS, Plugin

Tensor = torch.Tensor
_INT8 = 1  # `weight_type_id`
_BIAS, _ZERO, _PRE_SCALE = 1, 2, 4  # bits of `quant_algo`


def unpack(packed: Tensor) -> Tensor:
    """Return the values -8..7 of bytes with two each: [rows, n] -> [rows, 2 n]."""
    both = packed.view(torch.int8).to(torch.int16)
    low, high = ((both & 15) ^ 8) - 8, both >> 4
    return torch.stack([low, high], -1).flatten(-2)


def pack(values: Tensor) -> Tensor:
    """Return two values in a byte, the low half first."""
    return ((values[..., 0::2] & 15) | (values[..., 1::2] << 4)).to(torch.int8)


def quantize(weight: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return [..., in, out] in 8 or 4 bits, and the scale of every column."""
    top, bits = weight.float().abs().amax(-2, keepdim=True), 127 if kind == torch.int8 else 7
    q = (weight.float() / (top / bits).clamp(min=1e-12)).round().clamp(-bits - 1, bits)
    scale = (top / bits).squeeze(-2).to(weight.dtype)
    whole = q.to(torch.int8)
    return (whole if kind == torch.int8 else pack(whole)), scale


def _weight_only(plugin: Plugin, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    is_int8 = int(plugin.fields["weight_type_id"]) == _INT8
    wide = weight.float() if is_int8 else unpack(weight).float()
    return (x.float() @ (wide * scale.float())).to(x.dtype)


def _groupwise(plugin: Plugin, x: Tensor, *rest: Tensor) -> Tensor:
    others, algorithm = list(rest), int(plugin.fields["quant_algo"])
    group, wide = int(plugin.fields["group_size"]), x.float()
    if algorithm & _PRE_SCALE:
        wide = (wide * others.pop(0).float()).to(x.dtype).float()
    weight = unpack(others.pop(0).contiguous().view(torch.int8)).float()
    weight = weight * others.pop(0).float().repeat_interleave(group, 0)
    if algorithm & _ZERO:
        weight = weight + others.pop(0).float().repeat_interleave(group, 0)
    out = wide @ weight
    return (out + others.pop(0).float() if algorithm & _BIAS else out).to(x.dtype)


class Operators:
    """`torch.ops.trtllm` without its library."""

    def symmetric_quantize_last_axis_of_batched_matrix(
        self, weight: Tensor, kind: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        return quantize(weight, kind)

    def _symmetric_quantize_last_axis_of_batched_matrix(
        self, weight: Tensor, kind: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, scale = quantize(weight, kind)
        return q, q, scale

    def preprocess_weights_for_mixed_gemm(self, weight: Tensor, *_: Any) -> Tensor:
        return weight.contiguous()

    def pack_int8_tensor_to_packed_int4(self, weight: Tensor) -> Tensor:
        return pack(weight)

    def unpack_int4_packed_tensor_to_int8(self, weight: Tensor) -> Tensor:
        return unpack(weight).to(torch.int8)


def install() -> None:
    """Register operators and plugins."""
    torch.ops.trtllm = Operators()
    PLUGINS["WeightOnlyQuantMatmul"] = (1, _weight_only)
    PLUGINS["WeightOnlyGroupwiseQuantMatmul"] = (1, _groupwise)
