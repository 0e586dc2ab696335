"""From the tensors of a family to those of a quantised checkpoint: weights, and their scales.

Each tensor is a plan of its own over the same sources, so that conversion streams and shards it as
any other. Fused tensors (q, k, v) are quantised after they are joined, which unifies their scales
as upstream's fused layers need it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import Join, Shard, StoredDtype, TensorPlan
from specpipe.checkpoint.quantized import arithmetic as bits
from specpipe.checkpoint.quantized.calibration import Calibration
from specpipe.checkpoint.quantized.formats import GROUPS, Quantizing, group_size
from specpipe.contracts import ModelConfig, Quantization

if TYPE_CHECKING:
    import torch

Function = Callable[["torch.Tensor"], "torch.Tensor"]  # of the joined weights [n, k]


def quantized_plans(
    plans: list[TensorPlan], quantizing: Quantizing, model: ModelConfig, found: Calibration
) -> list[TensorPlan]:
    """Return the plans of the quantised checkpoint of a model whose plans are given.

    Weight-only formats change nothing: `trtllm-build` quantises 16-bit weights by itself.
    """
    planned = []
    for plan in plans:
        module = plan.name.removesuffix(".weight")
        if quantizing.weights in FORMATS and quantizing.includes(module, model):
            planned += FORMATS[quantizing.weights](_Layer(plan, model, quantizing, found))
        else:
            planned.append(plan)
        if quantizing.kv_cache != "none" and plan.name.endswith("attention.qkv.weight"):
            planned.append(_kv_cache(plan, quantizing, found))
    return planned


def modules_of(plan: TensorPlan) -> list[str]:
    """Return the Hugging Face modules whose weights a tensor holds."""
    return [source.removesuffix(".weight") for source in plan.sources]


def _fp8(w: "_Layer") -> list[TensorPlan]:
    def scale(weight: "torch.Tensor") -> float:
        return bits.fp8_scale(bits.largest(weight))

    return [
        w.weight(w.plan.shape, "float8_e4m3fn", lambda x: bits.to_fp8(x, scale(x))),
        w.number("weights_scaling_factor", scale),
        w.constant("activation_scaling_factor", w.largest_input / bits.FP8_MAX),
    ]


def _int8_sq(w: "_Layer") -> list[TensorPlan]:
    rows, _ = w.plan.shape
    return [
        w.weight(w.plan.shape, "int8", lambda x: bits.to_int8(w.smooth(x), w.row_scale(x))),
        w.by_row("weights_scaling_factor", (rows,), "float32", w.row_scale),
        w.constant("activation_scaling_factor", w.largest_input / bits.INT8_MAX),
        w.input_scale(),
    ]


def _int4_awq(w: "_Layer") -> list[TensorPlan]:
    rows, columns = w.plan.shape
    group = group_size(w.quantizing, w.model) or GROUPS[-1]

    def scale(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.group_scale(w.smooth(weight), group).to(w.dtype)

    def packed(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.to_int4(w.smooth(weight), scale(weight))

    return [
        w.weight((rows // 2, columns), "int8", packed),
        w.by_row("weights_scaling_factor", (rows, columns // group), w.model.dtype, scale),
        w.input_scale(),
    ]


def _nvfp4(w: "_Layer") -> list[TensorPlan]:
    rows, columns = w.plan.shape
    largest_scale = bits.FP8_MAX * bits.FP4_MAX

    def whole(weight: "torch.Tensor") -> float:
        return bits.largest(weight) / largest_scale or 1.0

    def packed(weight: "torch.Tensor") -> "torch.Tensor":
        return bits.to_fp4(weight, bits.fp4_scale(weight, whole(weight)), whole(weight))

    return [
        w.weight((rows, columns // 2), "uint8", packed),
        w.by_row("weights_scaling_factor", (rows, columns // bits.FP4_GROUP), "float8_e4m3fn",
                 lambda x: bits.fp4_scale(x, whole(x))),
        w.number("weights_scaling_factor_2", whole),
        w.constant("activation_scaling_factor", w.largest_input / largest_scale),
    ]  # fmt: skip


FORMATS: dict[Quantization, Callable[["_Layer"], list[TensorPlan]]] = {
    "fp8": _fp8,
    "int8_sq": _int8_sq,
    "int4_awq": _int4_awq,
    "nvfp4": _nvfp4,
}


@dataclass(frozen=True)
class _Layer:
    """One linear layer that is quantised, and makers of the plans of its tensors."""

    plan: TensorPlan  # of its weights [n, k]
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
        return self.found.largest_input(modules_of(self.plan))

    def scale_of_inputs(self) -> "torch.Tensor":
        """Return the input scale [k] as it is written: the weights must be divided by that."""
        return self.found.scale(modules_of(self.plan)).to(self.dtype)

    def smooth(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Divide the weights by the input scale, in float32."""
        scale = self.scale_of_inputs().float()
        return bits.by_rows(weight, lambda rows: rows.float() / scale)

    def row_scale(self, weight: "torch.Tensor") -> "torch.Tensor":
        """Return the int8 scale of every row of the smoothed weights."""
        return bits.row_scale(self.smooth(weight))

    def weight(self, shape: tuple[int, ...], dtype: StoredDtype, function: Function) -> TensorPlan:
        """Plan the weights themselves."""
        return replace(self.plan, shape=shape, dtype=dtype, join=self._then(function))

    def by_row(
        self, kind: str, shape: tuple[int, ...], dtype: StoredDtype, function: Function
    ) -> TensorPlan:
        """Plan scales with a row, or a number, for every row of the weights."""
        return replace(
            self.plan, name=self._name(kind), shape=shape, dtype=dtype, join=self._then(function),
            shard=scale_shard(self.plan.shard, len(shape)),
        )  # fmt: skip

    def number(self, kind: str, function: "Callable[[torch.Tensor], float]") -> TensorPlan:
        """Plan one float32 that follows from the weights; every rank has it."""
        return replace(
            self.plan, name=self._name(kind), shape=(1,), dtype="float32", shard=Shard.REPLICATED,
            join=self._then(lambda weight: _one(function(weight))),
        )  # fmt: skip

    def constant(self, kind: str, value: float) -> TensorPlan:
        """Plan one float32 that is known."""
        return constant(self.plan, self._name(kind), _one(value), "float32", Shard.REPLICATED)

    def input_scale(self) -> TensorPlan:
        """Plan the input scale [k]; ranks that hold some columns need it for those."""
        shard = Shard.ROWS if self.plan.shard is Shard.COLUMNS else Shard.REPLICATED
        name = self._name("prequant_scaling_factor")
        return constant(self.plan, name, self.scale_of_inputs(), self.model.dtype, shard)

    def _name(self, kind: str) -> str:
        return f"{self.plan.name.removesuffix('.weight')}.{kind}"

    def _then(self, function: Function) -> Join:
        plan = self.plan
        return lambda sources: function(assembled(plan, sources))


def assembled(plan: TensorPlan, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Return the tensor that a plan makes of its sources."""
    import torch

    if plan.join is not None:
        return plan.join(sources)
    return torch.cat(list(sources)).reshape(plan.shape)


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
