"""Checkpoints that others quantized: their own description, and the tensors made from them."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.quantized.experts import quantized_module
from specpipe.checkpoint.quantized.formats import GUESSERS, LEFT_OUT, LINEARS
from specpipe.checkpoint.quantized.layouts import LAYOUTS, MARKS, Method, fp8_tensors, int4_tensors
from specpipe.checkpoint.quantized.plans import modules_of
from specpipe.checkpoint.source import Source, TensorReader
from specpipe.core.errors import ConfigError, Unsupported, first_few
from specpipe.core.model import CacheQuantization, ModelConfig, Quantization

if TYPE_CHECKING:
    import torch

MEANS: dict[Method, Quantization] = {"awq": "int4_awq", "gptq": "int4_awq", "modelopt_fp8": "fp8"}

_INT4: dict[str, Method] = {"awq": "awq", "gptq": "gptq"}
_AWQ_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}  # AutoAWQ's own key -> config.json's


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
    file = source.path / "hf_quant_config.json"
    if source.path.is_dir() and file.is_file():
        return _modelopt(Keys(read_json(file), file).table("quantization").values, source)
    facts = _facts(source)
    method = str(facts.get("quant_method") or "").lower()
    if not method:
        return None
    if method == "modelopt":
        return _modelopt(facts, source)
    if method not in _INT4:
        raise Unsupported(
            f"{source.path}: quantised by {method!r}, which cannot be read",
            hint="known: awq (gemm), gptq (version 1), modelopt (FP8); or use the 16-bit model, or "
            "engine.backend: llmapi, with which TensorRT-LLM reads the checkpoint",
        )
    version = facts.get("version", "gemm") if method == "awq" else facts.get(
        "checkpoint_format", "gptq"
    )  # fmt: skip
    wrong = {
        "bits": facts.get("bits", 4) != 4,
        "desc_act": bool(facts.get("desc_act")) and bool(source.missing),  # else `g_idx` tells
        "version": str(version).lower() not in ("gemm", "gptq")
        or bool(facts.get("is_marlin_format")),
        "group_size": facts.get("group_size", 128) not in (64, 128),
    }
    if any(wrong.values()):
        raise Unsupported(
            f"{source.path}: {method} with {', '.join(k for k, bad in wrong.items() if bad)} as in "
            f"{dict(facts)}",
            hint="what can be read: 4 bits, groups of 64 or 128 in order (no desc_act), awq's gemm "
            "layout or gptq's first version",
        )
    return Foreign(_INT4[method], int(facts.get("group_size", 128)))


def _facts(source: Source) -> Mapping[str, Any]:
    """Return what a folder states about its quantisation: in config.json, else in an own file.

    AutoGPTQ and AutoAWQ wrote quantize_config.json and quant_config.json before transformers read
    such models, the latter with other keys.
    """
    own = Keys(source.hf_config, source.config_file).table("quantization_config").values
    if own or not source.path.is_dir():
        return own
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if (source.path / name).is_file():
            found = read_json(source.path / name)
            known = {ours: found[theirs] for theirs, ours in _AWQ_KEYS.items() if theirs in found}
            return {"quant_method": method, **found, **known}
    return {}


def require_readable(reader: TensorReader, foreign: Foreign, source: Source) -> None:
    """Raise ConfigError if no tensor is quantised as described, Unsupported for unordered groups.

    `g_idx` of GPTQ decides which column is in which group, whatever `desc_act` states.
    """
    import torch

    names = sorted(reader.names())
    if not any(name.endswith(MARKS[foreign.method]) for name in names):
        raise ConfigError(
            f"{source.path}: described as quantised by {foreign.method}, but no tensor is",
            hint="remove the description, or fetch the weights that it belongs to",
        )
    for name in names if foreign.method == "gptq" else ():
        if name.endswith(".g_idx"):
            groups = reader.read(name).long()
            if not torch.equal(groups, torch.arange(len(groups)) // foreign.group):
                raise Unsupported(
                    f"{name} puts the columns into groups out of order (act-order), which "
                    "TensorRT-LLM cannot read",
                    hint="quantise the model again with desc_act: false, or use the 16-bit model",
                )


def _modelopt(facts: Mapping[str, Any], source: Source) -> Foreign:
    if facts.get("quant_algo") != "FP8" or facts.get("kv_cache_quant_algo") not in (None, "FP8"):
        raise Unsupported(
            f"{source.path}: Model-Optimizer's {facts.get('quant_algo')} with KV cache "
            f"{facts.get('kv_cache_quant_algo')} cannot be read",
            hint="known: FP8; or quantise the 16-bit model with engine.quantization, or use "
            "engine.backend: llmapi, with which TensorRT-LLM reads the checkpoint",
        )
    return Foreign("modelopt_fp8", 0, "fp8" if facts.get("kv_cache_quant_algo") else "none")


def foreign_plans(
    plans: list[TensorPlan], foreign: Foreign, model: ModelConfig, names: AbstractSet[str]
) -> list[TensorPlan]:
    """Return the plans of a model whose files hold the tensors `names`, quantised by others.

    Raises Unsupported where the sources of a fused layer differ, or are not simply stacked, and for
    modules that upstream keeps in 16 bits: routers, embeddings, heads.
    """
    planned = []
    for plan in plans:
        if not _is_quantized(plan, foreign, names):
            planned.append(plan)
        elif layout := LAYOUTS.get(foreign.method):
            planned += int4_tensors(plan, layout, foreign.group, model)
        else:
            planned += fp8_tensors(plan)
        if plan.name.endswith("attention.qkv.weight") and foreign.kv_cache != "none":
            planned.append(_kv_cache(plan, names))
    return planned


def _is_quantized(plan: TensorPlan, foreign: Foreign, names: AbstractSet[str]) -> bool:
    modules = modules_of(plan)
    marked = [f"{module}{MARKS[foreign.method]}" in names for module in modules]
    if not any(marked):
        return False
    if not all(marked) or plan.join is not None:
        raise Unsupported(
            f"{plan.name}: quantised weights cannot be read into a layer made so from "
            f"{first_few(modules)}",
            hint="use the 16-bit model and engine.quantization",
        )
    if not plan.name.removesuffix(".weight").endswith(LINEARS):
        raise Unsupported(
            f"{modules[0]} is quantised, which TensorRT-LLM keeps in 16 or 32 bits",
            hint="quantise the model again without it, or use the 16-bit model",
        )
    return True


def is_left_over(name: str, reader: TensorReader) -> bool:
    """Tell whether a tensor of such files is empty of content: group indices, zero biases."""
    return name.endswith(".g_idx") or (name.endswith(".bias") and not bool(reader.read(name).any()))


def left_out(plans: list[TensorPlan], foreign: Foreign, names: AbstractSet[str]) -> tuple[str, ...]:
    """Return the patterns of the modules that are not quantised: upstream's, and what is plain.

    Raises Unsupported if of the two matrices of a layer's experts only one is quantised.
    """
    linears = [p for p in plans if p.name.removesuffix(".weight").endswith(LINEARS)]
    plain = [p for p in linears if not _is_quantized(p, foreign, names)]
    excluded = list(dict.fromkeys(map(quantized_module, plain)))
    for plan in linears:
        if plan not in plain and quantized_module(plan) in excluded:
            raise Unsupported(
                f"{plan.name} is quantised, its layer's other experts' weights are not",
                hint="TensorRT-LLM's experts are quantised together or not at all",
            )
    return (*LEFT_OUT, *GUESSERS, *excluded)


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
