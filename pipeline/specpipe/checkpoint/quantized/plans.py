"""Plans the tensors of a quantized checkpoint, weights and scales, from those of a family.

Each tensor is a plan of its own over the same sources, so that conversion streams and shards it as
any other. Fused tensors (q, k, v) are quantised after they are joined, which unifies their scales
as upstream's fused layers need it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import Shard, StoredDtype, TensorPlan
from specpipe.checkpoint.quantized import arithmetic as bits
from specpipe.checkpoint.quantized.calibration import Calibration
from specpipe.checkpoint.quantized.experts import of_every_matrix
from specpipe.checkpoint.quantized.formats import GROUPS, Quantizing, group_size
from specpipe.checkpoint.stream import assembled
from specpipe.core.model import ModelConfig, Quantization

if TYPE_CHECKING:
    import torch

_LARGEST_FP4 = bits.FP8_MAX * bits.FP4_MAX  # what a scale of 1 maps onto the largest numbers
PARTNERS = {"mlp.fc": "mlp.gate", "mlp.gate": "mlp.fc"}  # upstream may fuse them: one scale
# How the inputs [k] are cut of weights whose columns are.
_INPUT_SHARDS = {Shard.COLUMNS: Shard.ROWS, Shard.EXPERT_COLUMNS: Shard.EXPERT_INPUTS}
Function = Callable[["torch.Tensor"], "torch.Tensor"]  # of the joined weights [n, k]
# Of the joined weights, and the largest magnitude in them and in their partner's.
Scaled = Callable[["torch.Tensor", float], "torch.Tensor"]


def quantized_plans(
    plans: list[TensorPlan], quantizing: Quantizing, model: ModelConfig, found: Calibration
) -> list[TensorPlan]:
    """Return the plans of the quantised checkpoint of a model whose plans are given.

    Weight-only formats change nothing: `trtllm-build` quantises 16-bit weights by itself.
    """
    planned, weights = [], {plan.name: plan for plan in plans}
    for plan in plans:
        if quantizing.weights in FORMATS and quantizing.includes(plan, model):
            layer = _Layer(
                plan, _partner(plan, weights), tuple(modules_of(plan)), model, quantizing, found
            )
            planned += _layer(layer, FORMATS[quantizing.weights])
        else:
            planned.append(plan)
        if quantizing.kv_cache != "none" and plan.name.endswith("attention.qkv.weight"):
            planned.append(_kv_cache(plan, quantizing, found))
    return planned


def _layer(layer: "_Layer", kind: "_Format") -> list[TensorPlan]:
    """Plan the tensors of a layer, or of a stack of experts, whose inputs are rounded as one."""

    def matrix(plan: TensorPlan) -> list[TensorPlan]:
        return kind.of_weights(replace(layer, plan=plan))

    return of_every_matrix(layer.plan, matrix) + kind.of_inputs(layer)


def _partner(plan: TensorPlan, weights: Mapping[str, TensorPlan]) -> TensorPlan | None:
    for ours, theirs in PARTNERS.items():
        if plan.name.endswith(f"{ours}.weight"):
            return weights.get(plan.name.replace(f"{ours}.weight", f"{theirs}.weight"))
    return None


def modules_of(plan: TensorPlan) -> list[str]:
    """Return the Hugging Face modules whose weights a tensor holds."""
    return [source.removesuffix(".weight") for source in plan.sources]


def _fp8(w: "_Layer") -> list[TensorPlan]:
    def stored(weight: "torch.Tensor", amax: float) -> "torch.Tensor":
        return bits.to_fp8(weight, bits.fp8_scale(amax))

    return [
        w.weight(w.plan.shape, "float8_e4m3fn", w.with_largest(stored)),
        w.number("weights_scaling_factor", lambda weight, amax: bits.fp8_scale(amax)),
    ]


def _int8_sq(w: "_Layer") -> list[TensorPlan]:
    rows, _ = w.plan.shape

    def rounded(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.to_int8(w.smooth(weight), w.row_scale(weight))

    return [
        w.weight(w.plan.shape, "int8", alone(rounded)),
        w.by_row("weights_scaling_factor", (rows,), "float32", alone(w.row_scale)),
    ]


def _int4_awq(w: "_Layer") -> list[TensorPlan]:
    rows, columns = w.plan.shape
    group = group_size(w.quantizing, w.model) or GROUPS[-1]

    def scale(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.group_scale(w.smooth(weight), group).to(w.dtype)

    def packed(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.to_int4(w.smooth(weight), scale(weight))

    return [
        w.weight((rows // 2, columns), "int8", alone(packed)),
        w.by_row("weights_scaling_factor", (rows, columns // group), w.model.dtype, alone(scale)),
    ]


def _nvfp4(w: "_Layer") -> list[TensorPlan]:
    rows, columns = w.plan.shape

    def whole(weight: "torch.Tensor", amax: float) -> float:
        return amax / _LARGEST_FP4 or 1.0

    def scales(weight: "torch.Tensor", amax: float) -> "torch.Tensor":
        return bits.fp4_scale(weight, whole(weight, amax))

    def packed(weight: "torch.Tensor", amax: float) -> "torch.Tensor":
        return bits.to_fp4(weight, scales(weight, amax), whole(weight, amax))

    return [
        w.weight((rows, columns // 2), "uint8", w.with_largest(packed)),
        w.by_row("weights_scaling_factor", (rows, columns // bits.FP4_GROUP), "float8_e4m3fn",
                 w.with_largest(scales)),
        w.number("weights_scaling_factor_2", whole),
    ]  # fmt: skip


@dataclass(frozen=True)
class _Format:
    """Makers of the tensors of a matrix, and of those of its inputs."""

    of_weights: Callable[["_Layer"], list[TensorPlan]]
    of_inputs: Callable[["_Layer"], list[TensorPlan]]


FORMATS: dict[Quantization, _Format] = {
    "fp8": _Format(_fp8, lambda w: [w.input_step(bits.FP8_MAX)]),
    "int8_sq": _Format(_int8_sq, lambda w: [w.input_step(bits.INT8_MAX), w.input_scale()]),
    "int4_awq": _Format(_int4_awq, lambda w: [w.input_scale()]),
    "nvfp4": _Format(_nvfp4, lambda w: [w.input_step(_LARGEST_FP4)]),
}


@dataclass(frozen=True)
class Made:
    """How a tensor is made of the weights of a layer, and of those of others if it takes them."""

    function: "Callable[[Sequence[torch.Tensor]], torch.Tensor]"
    others: tuple[TensorPlan, ...] = ()


def alone(function: Function) -> Made:
    """Make a tensor of a layer's own weights."""
    return Made(lambda weights: function(weights[0]))


@dataclass(frozen=True)
class _Layer:
    """One linear layer that is quantised, and makers of the plans of its tensors."""

    plan: TensorPlan  # of its weights [n, k]
    partner: TensorPlan | None  # of the layer that must have the same scale
    modules: tuple[str, ...]  # all that share its input: for an expert, those of the others too
    model: ModelConfig
    quantizing: Quantizing
    found: Calibration

    @property
    def dtype(self) -> "torch.dtype":
        """What the tensors are written in that are not quantised."""
        import torch

        kind: torch.dtype = getattr(torch, self.model.dtype)
        return kind

    @property
    def largest_input(self) -> float:
        """The largest magnitude that goes into it."""
        return self.found.largest_input(self.modules)

    def scale_of_inputs(self) -> "torch.Tensor":
        """Return the input scale [k] as it is written: the weights must be divided by that."""
        return self.found.scale(self.modules).to(self.dtype)

    def smooth(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Divide the weights by the input scale, in float32."""
        scale = self.scale_of_inputs().float()
        return bits.by_rows(weight, lambda rows: rows.float() / scale)

    def row_scale(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Return the int8 scale of every row of the smoothed weights."""
        return bits.row_scale(self.smooth(weight))

    def weight(self, shape: tuple[int, ...], dtype: StoredDtype, made: Made) -> TensorPlan:
        """Plan the weights themselves."""
        return self._then(replace(self.plan, shape=shape, dtype=dtype), made)

    def by_row(
        self, kind: str, shape: tuple[int, ...], dtype: StoredDtype, made: Made
    ) -> TensorPlan:
        """Plan scales with a row, or a number, for every row of the weights."""
        shard = scale_shard(self.plan.shard, len(shape))
        name = self._name(kind)
        return self._then(
            replace(self.plan, name=name, shape=shape, dtype=dtype, shard=shard), made
        )

    def number(self, kind: str, function: "Callable[[torch.Tensor, float], float]") -> TensorPlan:
        """Plan one float32 that follows from the weights and their partner's; all ranks have it."""
        plan = replace(
            self.plan, name=self._name(kind), shape=(1,), dtype="float32", shard=Shard.REPLICATED
        )
        return self._then(plan, self.with_largest(lambda x, amax: _one(function(x, amax))))

    def with_largest(self, function: Scaled) -> Made:
        """Apply a function to the weights and the largest magnitude in both partners."""
        partner = self.partner
        if partner is None:
            return Made(lambda weights: function(weights[0], bits.largest(weights[0])))
        return Made(
            lambda weights: function(weights[0], max(map(bits.largest, weights))), (partner,)
        )

    def input_step(self, most: float) -> TensorPlan:
        """Plan what one unit of the rounded inputs is worth, if the largest of them is `most`."""
        step, name = _one(self.largest_input / most), self._name("activation_scaling_factor")
        return constant(self.plan, name, step, "float32", Shard.REPLICATED)

    def input_scale(self) -> TensorPlan:
        """Plan the input scale [k]; ranks that hold some columns need it for those."""
        shard = _INPUT_SHARDS.get(self.plan.shard, Shard.REPLICATED)
        name = self._name("prequant_scaling_factor")
        return constant(self.plan, name, self.scale_of_inputs(), self.model.dtype, shard)

    def _name(self, kind: str) -> str:
        return f"{self.plan.name.removesuffix('.weight')}.{kind}"

    def _then(self, plan: TensorPlan, made: Made) -> TensorPlan:
        """Return `plan` with what it is made of: its own sources, and those of others."""
        plans = (self.plan, *made.others)
        counts = [len(p.sources) for p in plans]
        begins = [sum(counts[:i]) for i in range(len(plans))]

        def join(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
            return made.function(
                [
                    assembled(p, sources[begin : begin + count]).contiguous()
                    for p, begin, count in zip(plans, begins, counts, strict=True)
                ]
            )

        return replace(
            plan, join=join, sources=tuple(s for p in plans for s in p.sources),
            source_shapes=tuple(s for p in plans for s in p.source_shapes),
        )  # fmt: skip


def constant(
    plan: TensorPlan, name: str, value: "torch.Tensor", dtype: StoredDtype, shard: Shard
) -> TensorPlan:
    """Plan a known tensor on the ranks that hold (their part of) the tensor of `plan`."""
    return replace(
        plan, name=name, shape=tuple(value.shape), sources=(), source_shapes=(), dtype=dtype,
        join=lambda sources: value, shard=shard,
    )  # fmt: skip


def scale_shard(weight: Shard, dimensions: int) -> Shard:
    """Return how scales for rows [n] or groups [n, k / group] are cut, given the weights' way."""
    return Shard.REPLICATED if weight is Shard.COLUMNS and dimensions == 1 else weight


def _kv_cache(plan: TensorPlan, quantizing: Quantizing, found: Calibration) -> TensorPlan:
    """Plan the scale of a layer's KV cache.

    fp8 is stored as it is, as Model-Optimizer recommends and upstream's converters do. int8 covers
    the largest key and value before rotation, as there.
    """
    name = plan.name.replace("qkv.weight", "kv_cache_scaling_factor")
    value = 1.0
    if quantizing.kv_cache == "int8":
        value = found.largest_output(modules_of(plan)[-2:]) / bits.INT8_MAX
    return constant(plan, name, _one(value), "float32", Shard.REPLICATED)


def _one(value: float) -> "torch.Tensor":
    import torch

    return torch.tensor([value], dtype=torch.float32)
