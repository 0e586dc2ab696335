"""Checkpoints that others quantised: what they say of themselves, and their tensors in our layout.

- AutoAWQ, `gemm`: `qweight` [k, n / 8] and `qzeros` [k / group, n / 8] int32, eight columns in a
  word in the order 0 2 4 6 1 3 5 7; `scales` [k / group, n].
- GPTQ, version 1: `qweight` [k / 8, n], eight rows in a word; `qzeros` [k / group, n / 8], eight
  columns in a word, each zero point less one; `scales` [k / group, n]; `g_idx` [k].
- Model-Optimizer, FP8: `weight` [n, k] e4m3, `weight_scale`, `input_scale`, `k_scale`, `v_scale`.

An int4 weight is (level - zero) * scale. TensorRT-LLM wants level - 8, and (8 - zero) * scale as
`zero` [k / group, n].
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.checkpoint.quantized import arithmetic as bits
from specpipe.checkpoint.quantized.formats import GUESSERS, LEFT_OUT, LINEARS
from specpipe.checkpoint.quantized.plans import modules_of, scale_shard
from specpipe.checkpoint.source import Source, TensorReader, read_json
from specpipe.contracts import CacheQuantization, ModelConfig, Quantization
from specpipe.errors import Unsupported

if TYPE_CHECKING:
    import torch

Method = Literal["awq", "gptq", "modelopt_fp8"]
MEANS: dict[Method, Quantization] = {"awq": "int4_awq", "gptq": "int4_awq", "modelopt_fp8": "fp8"}
# The tensor that tells that a module is quantised.
MARKS: dict[Method, str] = {"awq": ".qweight", "gptq": ".qweight", "modelopt_fp8": ".weight_scale"}
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # nibble of the word that holds column 0, 1, 2 ...


@dataclass(frozen=True)
class Foreign:
    """How a checkpoint was quantised by others."""

    method: Method
    group: int = 0
    kv_cache: CacheQuantization = "none"

    @property
    def weights(self) -> Quantization:
        """The value of engine.quantization that means this."""
        return MEANS[self.method]


def find_foreign(source: Source) -> Foreign | None:
    """Return how a checkpoint is quantised; None if it is not.

    Raises Unsupported for a method, version or option that cannot be read.
    """
    facts: Mapping[str, Any] = source.hf_config.get("quantization_config") or {}
    file = source.path / "hf_quant_config.json"
    if source.path.is_dir() and file.is_file():
        return _modelopt(read_json(file).get("quantization") or {}, source)
    method = facts.get("quant_method")
    if method is None:
        return None
    if method == "modelopt":
        return _modelopt(facts, source)
    if method not in ("awq", "gptq"):
        raise Unsupported(
            f"{source.path}: quantised by {method!r}, which cannot be read",
            hint="known: awq (gemm), gptq (version 1), modelopt (FP8); or use the 16-bit model",
        )
    version = facts.get("version", "gemm") if method == "awq" else facts.get(
        "checkpoint_format", "gptq"
    )  # fmt: skip
    wrong = {
        "bits": facts.get("bits", 4) != 4,
        "desc_act": bool(facts.get("desc_act", False)),
        "version": str(version).lower() not in ("gemm", "gptq"),
        "group_size": facts.get("group_size", 128) not in (64, 128),
    }
    if any(wrong.values()):
        raise Unsupported(
            f"{source.path}: {method} with {', '.join(k for k, bad in wrong.items() if bad)} as in "
            f"{dict(facts)}",
            hint="what can be read: 4 bits, groups of 64 or 128, no desc_act, awq's gemm layout or "
            "gptq's first version",
        )
    return Foreign(method, int(facts.get("group_size", 128)))


def _modelopt(facts: Mapping[str, Any], source: Source) -> Foreign:
    if facts.get("quant_algo") != "FP8" or facts.get("kv_cache_quant_algo") not in (None, "FP8"):
        raise Unsupported(
            f"{source.path}: Model-Optimizer's {facts.get('quant_algo')} with KV cache "
            f"{facts.get('kv_cache_quant_algo')} cannot be read",
            hint="known: FP8; or quantise the 16-bit model with engine.quantization",
        )
    return Foreign("modelopt_fp8", 0, "fp8" if facts.get("kv_cache_quant_algo") else "none")


def foreign_plans(
    plans: list[TensorPlan], foreign: Foreign, model: ModelConfig, names: AbstractSet[str]
) -> list[TensorPlan]:
    """Return the plans of a model whose files hold the tensors `names`, quantised by others.

    Raises Unsupported where the sources of a fused layer differ, or are not simply stacked.
    """
    mark = MARKS[foreign.method]
    planned = []
    for plan in plans:
        modules = modules_of(plan)
        marked = [f"{module}{mark}" in names for module in modules]
        if not any(marked):
            planned.append(plan)
        elif not all(marked) or plan.join is not None or len(plan.shape) != 2:
            raise Unsupported(
                f"{plan.name}: quantised weights cannot be read into a layer that is made so from "
                f"{', '.join(modules)}",
                hint="use the 16-bit model and engine.quantization",
            )
        else:
            planned += _MAKERS[foreign.method](plan, foreign, model)
        if plan.name.endswith("attention.qkv.weight") and foreign.kv_cache != "none":
            planned.append(_kv_cache(plan, names))
    return planned


def is_left_over(name: str, reader: TensorReader) -> bool:
    """Tell whether a tensor of such files says nothing: GPTQ's group indices, biases of zeros."""
    return name.endswith(".g_idx") or (name.endswith(".bias") and not bool(reader.read(name).any()))


def left_out(plans: list[TensorPlan], foreign: Foreign, names: AbstractSet[str]) -> tuple[str, ...]:
    """Return the patterns of the modules that are not quantised: upstream's, and what is plain."""
    plain = [
        plan.name.removesuffix(".weight")
        for plan in plans
        if plan.name.endswith(tuple(f"{name}.weight" for name in LINEARS))
        and f"{modules_of(plan)[0]}{MARKS[foreign.method]}" not in names
    ]
    return (*LEFT_OUT, *GUESSERS, *plain)


def _kv_cache(plan: TensorPlan, names: AbstractSet[str]) -> TensorPlan:
    name = plan.name.replace("qkv.weight", "kv_cache_scaling_factor")
    scales = [f"{m}.{s}_scale" for m, s in zip(modules_of(plan)[-2:], "kv", strict=False)]
    shapes = tuple(() for _ in scales)
    if not set(scales) <= names:
        scales, shapes = [], ()

    def largest(values: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        return torch.tensor([max([1.0, *map(float, values)])], dtype=torch.float32)

    return replace(
        plan, name=name, shape=(1,), sources=tuple(scales), source_shapes=shapes, dtype="float32",
        join=largest, shard=Shard.REPLICATED,
    )  # fmt: skip


def _fp8(plan: TensorPlan, foreign: Foreign, model: ModelConfig) -> list[TensorPlan]:
    """Bring the parts of a fused layer under one scale: the largest of theirs."""
    modules = modules_of(plan)
    scales = tuple(f"{module}.weight_scale" for module in modules)
    numbers = tuple(() for _ in modules)

    def largest(values: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        return torch.stack([v.float().reshape(1) for v in values]).amax(dim=0)

    def weights(sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        import torch

        parts, theirs = sources[: len(modules)], sources[len(modules) :]
        ours = float(largest(theirs))
        same = [
            part if float(scale) == ours
            else bits.by_rows(part.view(torch.uint8), _rescaled(float(scale), ours))
            for part, scale in zip(parts, theirs, strict=True)
        ]  # fmt: skip
        return torch.cat([part.view(torch.uint8) for part in same]).view(torch.float8_e4m3fn)

    module = plan.name.removesuffix(".weight")
    one = replace(plan, shape=(1,), source_shapes=numbers, dtype="float32", join=largest,
                  shard=Shard.REPLICATED)  # fmt: skip
    inputs = tuple(f"{m}.input_scale" for m in modules)
    return [
        replace(plan, dtype="float8_e4m3fn", join=weights, sources=plan.sources + scales,
                source_shapes=plan.source_shapes + numbers),
        replace(one, name=f"{module}.weights_scaling_factor", sources=scales),
        replace(one, name=f"{module}.activation_scaling_factor", sources=inputs),
    ]  # fmt: skip


def _rescaled(theirs: float, ours: float) -> "Callable[[torch.Tensor], torch.Tensor]":
    import torch

    def rows(part: "torch.Tensor") -> "torch.Tensor":
        wide = part.view(torch.float8_e4m3fn).float() * theirs
        return bits.to_fp8(wide, ours).view(torch.uint8)

    return rows


def _int4(plan: TensorPlan, foreign: Foreign, model: ModelConfig) -> list[TensorPlan]:
    """Unpack, stack the parts of a fused layer, and pack as TensorRT-LLM does."""
    rows, columns = plan.shape
    groups = columns // foreign.group
    module = plan.name.removesuffix(".weight")
    layout = LAYOUTS[foreign.method]

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
    }.get(weights, Shard.REPLICATED)


@dataclass(frozen=True)
class Layout:
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


LAYOUTS: dict[Method, Layout] = {
    "awq": Layout(_awq_columns, _awq_columns, lambda n, k: (k, n // 8)),
    "gptq": Layout(_gptq_rows, _gptq_zeros, lambda n, k: (k // 8, n)),
}
_MAKERS: dict[Method, Callable[[TensorPlan, Foreign, ModelConfig], list[TensorPlan]]] = {
    "awq": _int4,
    "gptq": _int4,
    "modelopt_fp8": _fp8,
}
