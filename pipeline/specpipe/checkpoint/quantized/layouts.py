"""Converts the tensors of checkpoints that others quantized to TensorRT-LLM's layout.

- AutoAWQ, `gemm`: `qweight` [k, n / 8] and `qzeros` [k / group, n / 8] int32, eight columns in a
  word in the order 0 2 4 6 1 3 5 7; `scales` [k / group, n].
- GPTQ, version 1: `qweight` [k / 8, n], eight rows in a word; `qzeros` [k / group, n / 8], eight
  columns in a word, each zero point less one; `scales` [k / group, n]; `g_idx` [k].
- Model-Optimizer, FP8: `weight` [n, k] e4m3, `weight_scale`, `input_scale`, `k_scale`, `v_scale`.

An int4 weight is (level - zero) * scale. TensorRT-LLM wants level - 8, and (8 - zero) * scale as
`zero` [k / group, n].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.checkpoint.quantized import arithmetic as bits
from specpipe.checkpoint.quantized.experts import of_every_matrix
from specpipe.checkpoint.quantized.plans import modules_of, scale_shard
from specpipe.core.model import ModelConfig

if TYPE_CHECKING:
    import torch

Method = Literal["awq", "gptq", "modelopt_fp8"]
# The tensor that tells that a module is quantised.
MARKS: dict[Method, str] = {"awq": ".qweight", "gptq": ".qweight", "modelopt_fp8": ".weight_scale"}
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble of the word that holds column 0, 1, 2 ...


def fp8_tensors(plan: TensorPlan) -> list[TensorPlan]:
    """Return what becomes of Model-Optimizer's FP8 layer, or stack of experts, with weights `plan`.

    The parts of a fused matrix come under the largest of their scales, and all inputs under the
    largest input scale: TensorRT-LLM's experts share one.
    """
    inputs = [f"{module}.input_scale" for module in modules_of(plan)]
    return [
        *of_every_matrix(plan, _fp8_matrix),
        _largest(plan, "activation_scaling_factor", inputs),
    ]


def _fp8_matrix(plan: TensorPlan) -> list[TensorPlan]:
    scales = [f"{module}.weight_scale" for module in modules_of(plan)]
    scale = _largest(plan, "weights_scaling_factor", scales)
    weight = replace(
        plan, dtype="float8_e4m3fn", join=_under_one_scale, sources=plan.sources + scale.sources,
        source_shapes=plan.source_shapes + scale.source_shapes,
    )  # fmt: skip
    return [weight, scale]


def _largest(plan: TensorPlan, kind: str, scales: Sequence[str]) -> TensorPlan:
    """Plan the largest of some scalars next to the weights `plan`."""
    return replace(
        plan, name=plan.name.removesuffix("weight") + kind, shape=(1,), sources=tuple(scales),
        source_shapes=tuple(() for _ in scales), dtype="float32", join=_maximum,
        shard=Shard.REPLICATED,
    )  # fmt: skip


def _maximum(values: "Sequence[torch.Tensor]") -> "torch.Tensor":
    import torch

    return torch.stack([v.float().reshape(1) for v in values]).amax(dim=0)


def _under_one_scale(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Join: bring matrices of e4m3, followed by their scales, under the largest of the scales."""
    import torch

    count = len(sources) // 2
    parts, theirs = sources[:count], sources[count:]
    ours = float(_maximum(theirs))
    same = [
        part if float(scale) == ours
        else bits.by_rows(part.view(torch.uint8), _rescaled(float(scale), ours))
        for part, scale in zip(parts, theirs, strict=True)
    ]  # fmt: skip
    return torch.cat([part.view(torch.uint8) for part in same]).view(torch.float8_e4m3fn)


def _rescaled(theirs: float, ours: float) -> "Callable[[torch.Tensor], torch.Tensor]":
    import torch

    def rows(part: "torch.Tensor") -> "torch.Tensor":
        wide = part.view(torch.float8_e4m3fn).float() * theirs
        return bits.to_fp8(wide, ours).view(torch.uint8)

    return rows


def int4_tensors(
    plan: TensorPlan, layout: "PackedLayout", group: int, model: ModelConfig
) -> list[TensorPlan]:
    """Return what becomes of an int4 layer, or stack of experts, with weights `plan`.

    Unpacked, the parts of a fused matrix stacked, and packed as TensorRT-LLM does.
    """
    return of_every_matrix(plan, lambda matrix: _int4_matrix(matrix, layout, group, model))


def _int4_matrix(
    plan: TensorPlan, layout: "PackedLayout", group: int, model: ModelConfig
) -> list[TensorPlan]:
    rows, columns = plan.shape
    groups = columns // group
    module = plan.name.removesuffix(".weight")

    def of(kind: str, shape: Callable[[int], tuple[int, int]]) -> TensorPlan:
        return replace(
            plan, sources=tuple(f"{m}.{kind}" for m in modules_of(plan)),
            source_shapes=tuple(shape(n) for n, _ in plan.source_shapes),
        )  # fmt: skip

    def packed(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        levels = torch.cat([layout.levels(part) for part in sources], dim=1).T - 8
        return bits.pack_int4(levels.contiguous())

    def scales(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        return torch.cat(list(sources), dim=1).T.contiguous()

    def zero(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        half = len(sources) // 2
        zeros = torch.cat([layout.zeros(part) for part in sources[:half]], dim=1)
        return (8 - zeros.float()) * torch.cat(list(sources[half:]), dim=1).float()

    weight = of("qweight", lambda n: layout.weight_shape(n, columns))
    scale = of("scales", lambda n: (groups, n))
    zeros = of("qzeros", lambda n: (groups, n // 8))
    return [
        replace(weight, dtype="int8", shape=(rows // 2, columns), join=packed),
        replace(scale, name=f"{module}.weights_scaling_factor", shape=(rows, groups), join=scales,
                dtype=model.dtype, shard=scale_shard(plan.shard, 2)),
        replace(zeros, name=f"{module}.zero", shape=(groups, rows), join=zero, dtype=model.dtype,
                shard=_turned(plan.shard), sources=zeros.sources + scale.sources,
                source_shapes=zeros.source_shapes + scale.source_shapes),
    ]  # fmt: skip


def _turned(weights: Shard) -> Shard:
    """Return how a tensor [.., n] is cut whose columns belong to the rows of the weights."""
    return {
        Shard.ROWS: Shard.COLUMNS,
        Shard.COLUMNS: Shard.ROWS,
        Shard.QKV: Shard.QKV_COLUMNS,
        Shard.GATED: Shard.GATED_COLUMNS,
    }.get(weights, Shard.REPLICATED)


@dataclass(frozen=True)
class PackedLayout:
    """How one method packs int4 levels [k, n] and zero points [groups, n]."""

    levels: "Callable[[torch.Tensor], torch.Tensor]"
    zeros: "Callable[[torch.Tensor], torch.Tensor]"
    weight_shape: Callable[[int, int], tuple[int, int]]  # of n rows and k columns of the weights


def nibbles(words: "torch.Tensor") -> "torch.Tensor":
    """Return the eight nibbles of every int32, lowest first: [a, b] -> [a, b, 8] int8."""
    import torch

    octets = words.contiguous().view(torch.uint8)
    pairs = torch.stack([octets & 0x0F, octets >> 4], dim=-1)
    return pairs.reshape(*words.shape, 8).view(torch.int8)


def _awq_columns(words: "torch.Tensor") -> "torch.Tensor":
    return nibbles(words)[..., list(AWQ_ORDER)].reshape(len(words), -1)


def _gptq_rows(words: "torch.Tensor") -> "torch.Tensor":
    return nibbles(words).transpose(1, 2).reshape(-1, words.shape[1])


def _gptq_zeros(words: "torch.Tensor") -> "torch.Tensor":
    return nibbles(words).reshape(len(words), -1) + 1


LAYOUTS: dict[Method, PackedLayout] = {
    "awq": PackedLayout(_awq_columns, _awq_columns, lambda n, k: (k, n // 8)),
    "gptq": PackedLayout(_gptq_rows, _gptq_zeros, lambda n, k: (k // 8, n)),
}
