"""The tensors of every rank compared with config.json: names, shapes, padding."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from specpipe.checkpoint.drafter import planned_token_map
from specpipe.checkpoint.eagle import planned_drafters, planned_outputs
from specpipe.checkpoint.eagle3_tensors import planned_in_target
from specpipe.checkpoint.families import Shard, TensorPlan, find_family
from specpipe.checkpoint.inspection.config import (
    REDRAFTERS,
    Json,
    complete,
    is_legible,
    table,
    text,
)
from specpipe.checkpoint.inspection.headers import Header, Stored
from specpipe.checkpoint.inspection.quantization import algorithm, check_weights
from specpipe.checkpoint.inspection.records import InspectionFinding, Ranks
from specpipe.checkpoint.medusa import BASES, planned_heads
from specpipe.checkpoint.redrafter_tensors import OUTPUT, planned_drafter
from specpipe.checkpoint.shard import Rank, cut, local_name
from specpipe.core.divisibility import Parallel, check_parallel
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.errors import Unsupported, first_few
from specpipe.core.model import ModelConfig, model_from_json

# What quantisation adds next to the weights; TensorRT-LLM's names, of every format.
_SCALES = (
    "scaling_factor", "scaling_factor_interleaved", "block_scaling_factor", "global_scale",
    "per_channel_scale", "act_scale", "smoother", "scale_to_int", "zero", "alpha",
    "fp8_scale", "weights_scaling_factor_2",
)  # fmt: skip
_WEIGHT_BITS = {"W4A16": 4, "W4A8": 4, "NVFP4": 4, "W8A16": 8, "W8A8": 8, "FP8": 8}
_FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}
_AS_LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM")
# What these have in addition to a Llama; TensorRT-LLM builds them on nothing else.
DRAFTERS = {"EagleForCausalLM": "eagle_nets."}
_CONVERT = "convert the model again"


@dataclass(frozen=True)
class Expected:
    """One tensor that a rank must hold."""

    plan: TensorPlan
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ExpectedTensors:
    """Which tensors there must be, and how they are spread."""

    model: ModelConfig
    plans: tuple[TensorPlan, ...]
    parallel: Parallel

    def indivisible(self) -> list[InspectionFinding]:
        """Return every reason why the model cannot be spread like this."""
        found = check_parallel(self.model, self.parallel, "model")
        return [InspectionFinding(rejection.reason, rejection.hint) for rejection in found]

    def of_rank(self, index: int) -> dict[str, Expected]:
        """Return what a rank must hold, by name; `indivisible` must have found nothing."""
        return _of_rank(self.plans, Rank(self.parallel, index), self.model)


def read_layout(raw: Json, ranks: Ranks, headers: Mapping[int, Header]) -> ExpectedTensors:
    """Return which tensors config.json requires.

    Raises Unsupported, with the reason, if that cannot be told.
    """
    parallel = Parallel(
        ranks.tp_size,
        ranks.pp_size,
        ranks.moe_ep_size,
        bool(raw.get("use_parallel_embedding")),
        1 if raw.get("embedding_sharding_dim") == 1 else 0,
    )
    model, plans = _plans(raw, headers)
    return ExpectedTensors(model, tuple(plans), parallel)


def _of_rank(plans: Iterable[TensorPlan], rank: Rank, model: ModelConfig) -> dict[str, Expected]:
    named = ((local_name(plan, rank, model), plan) for plan in plans)
    return {name: Expected(plan, cut(plan, rank, model).shape) for name, plan in named if name}


def _plans(raw: Json, headers: Mapping[int, Header]) -> tuple[ModelConfig, list[TensorPlan]]:
    if not is_legible(raw):
        raise Unsupported("names and shapes of tensors: config.json does not describe a model")
    architecture = text(raw, "architecture") or ""
    if architecture == "MedusaForCausalLM":
        architecture = BASES.get(text(raw, "model_type") or "llama", "")
    elif architecture in REDRAFTERS:
        architecture = REDRAFTERS[architecture]
    elif architecture in DRAFTERS:
        architecture = "LlamaForCausalLM"
    if "arithmetic" not in raw and architecture not in _AS_LLAMA:
        raise Unsupported(
            f"names and shapes of tensors: {architecture or 'this architecture'} of another "
            "converter is not known here"
        )
    try:
        family = find_family({"architectures": [architecture]})
        model = model_from_json({**_with_net(complete(raw)), "architecture": architecture})
        plans = family.tensors(model)
    except Unsupported as error:
        raise Unsupported(f"names and shapes of tensors: {error.args[0]}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise Unsupported(
            f"names and shapes of tensors: config.json does not describe a model ({error})"
        ) from error
    if model.num_medusa_heads:
        names = {name for header in headers.values() for name in header}
        shares = not any(n.startswith("medusa_heads.") and "lm_head" in n for n in names)
        whole = raw.get("architecture") == "MedusaForCausalLM"
        plans += planned_heads(model, shares_output=shares and not whole)
    if model.eagle_net_config is not None:
        plans += planned_outputs(plans, model.num_eagle_layers) + planned_drafters(model)
    plans += planned_in_target(model, {n for header in headers.values() for n in header})
    plans += _planned_token_maps(headers)
    return model, plans + _planned_drafter(raw, model, headers)


def _planned_drafter(
    raw: Json, model: ModelConfig, headers: Mapping[int, Header]
) -> list[TensorPlan]:
    """List the tensors of a ReDrafter; only TensorRT-LLM needs a copy of a shared output layer."""
    plans = planned_drafter(model)
    names = {name for header in headers.values() for name in header}
    if text(raw, "architecture") in REDRAFTERS or OUTPUT in names:
        return plans
    return [plan for plan in plans if plan.name != OUTPUT]


def _planned_token_maps(headers: Mapping[int, Header]) -> list[TensorPlan]:
    """List the token maps of heads and drafters, which may have any number of tokens."""
    header, end = next(iter(headers.values()), {}), f".{TOKEN_MAP}"
    found = {name: stored for name, stored in header.items() if name.endswith(end)}
    return [planned_token_map(n.removesuffix(end), prod(s.shape)) for n, s in found.items()]


def _with_net(full: dict[str, Any]) -> dict[str, Any]:
    """Complete the config of an EAGLE drafter within that of its target; drop one of no model."""
    net = table(full, "eagle_net_config")
    return {**full, "eagle_net_config": complete(net) if is_legible(net) else None}


def unknown_drafter(raw: Json, expected: Mapping[str, Expected]) -> str | None:
    """Return how the tensors of a drafter begin of which nothing more is known here."""
    prefix = DRAFTERS.get(text(raw, "architecture") or "")
    known = prefix is None or any(name.startswith(prefix) for name in expected)
    return None if known else prefix


def compare(
    rank: int, header: Header, expected: Mapping[str, Expected], raw: Json
) -> Iterator[InspectionFinding]:
    """Yield the missing, the superfluous and the misshapen or mistyped tensors of one rank."""
    missing = sorted(expected.keys() - header.keys() - _may_lack(header))
    drafter = unknown_drafter(raw, expected)
    unexpected = sorted(
        name
        for name in header.keys() - expected.keys()
        if not name.endswith(_SCALES) and not (drafter and name.startswith(drafter))
    )
    if drafter and not any(name.startswith(drafter) for name in header):
        yield InspectionFinding(f"rank {rank} has no tensor of the drafter ({drafter}*)", _CONVERT)
    if missing:
        yield InspectionFinding(
            f"rank {rank} lacks {first_few(missing)}", _hint(missing, unexpected)
        )
    if unexpected:
        yield InspectionFinding(
            f"rank {rank} has {first_few(unexpected)}, which the config does not require",
            _hint(missing, unexpected),
        )
    yield from _check_scales(rank, header, raw)
    yield from check_weights(rank, {name: stored.dtype for name, stored in header.items()}, raw)
    wrong = [
        sentence
        for name in sorted(expected.keys() & header.keys())
        if (sentence := _wrong(name, header[name], expected[name], raw))
    ]
    for sentence in wrong[:4]:
        yield InspectionFinding(f"rank {rank}: {sentence}", _CONVERT)
    if len(wrong) > 4:
        yield InspectionFinding(f"rank {rank}: {len(wrong) - 4} more tensors like these", _CONVERT)


def _check_scales(rank: int, header: Header, raw: Json) -> Iterator[InspectionFinding]:
    """Quantised weights need scales next to them, a quantised KV cache one in every layer."""
    scaled = {name.rpartition(".")[0] for name in header if name.endswith(_SCALES)}
    packed = (name for name, stored in header.items() if stored.dtype not in _FLOATS)
    modules = {name.removesuffix(".weight") for name in packed if name.endswith(".weight")}
    if bare := sorted(modules - scaled):
        yield InspectionFinding(
            f"rank {rank}: {first_few(bare)}: quantised weights without scales", _CONVERT
        )
    if text(table(raw, "quantization"), "kv_cache_quant_algo"):
        qkv = (name for name in header if name.endswith("attention.qkv.weight"))
        layers = {name.removesuffix(".qkv.weight") for name in qkv}
        bare = sorted(n for n in layers if f"{n}.kv_cache_scaling_factor" not in header)
        if bare:
            yield InspectionFinding(
                f"rank {rank}: {first_few(bare)}: the KV cache is quantised, but has no scale here",
                _CONVERT,
            )


def _may_lack(header: Header) -> set[str]:
    """Return what upstream takes from elsewhere: a head from an embedding in the same file."""
    return {"lm_head.weight"} if "transformer.vocab_embedding.weight" in header else set()


def _hint(missing: list[str], unexpected: list[str]) -> str:
    if missing and unexpected and all(".layers." in name for name in missing + unexpected):
        return "layers count from 0 in the file of every pipeline stage"
    return _CONVERT


def _wrong(name: str, stored: Stored, expected: Expected, raw: Json) -> str | None:
    how = algorithm(raw)
    if stored.dtype not in _FLOATS or (how and stored.shape != expected.shape):
        return _wrong_size(name, stored, expected, how)
    if stored.shape != expected.shape:
        return _wrong_shape(name, stored, expected)
    dtype = expected.plan.dtype or text(raw, "dtype")
    if stored.dtype != dtype:
        return f"{name} is {stored.dtype}, its config states {dtype}"
    return None


def _wrong_shape(name: str, stored: Stored, expected: Expected) -> str:
    whole = expected.plan.shape
    text = f"{name} is {_size(stored.shape)}, must be {_size(expected.shape)}"
    if expected.plan.shard is Shard.HEAD and stored.shape[1:] == expected.shape[1:]:
        return f"{text}: the vocabulary of {whole[0]} is not padded to a multiple of tp_size"
    return f"{text}, and {_size(whole)} before it is cut" if whole != expected.shape else text


def _wrong_size(name: str, stored: Stored, expected: Expected, algorithm: str | None) -> str | None:
    """Quantised weights are packed and turned in many ways; what they must keep is their size."""
    if algorithm is None:
        return f"{name} is {stored.dtype}, but config.json names no quantisation"
    bits = next((b for key, b in _WEIGHT_BITS.items() if algorithm.startswith(key)), None)
    width = {"int32": 32, **_FLOATS}.get(stored.dtype, 8)
    if bits is None or prod(stored.shape) * width == prod(expected.shape) * bits:
        return None
    return (
        f"{name} is {_size(stored.shape)} of {stored.dtype}, which is not {_size(expected.shape)} "
        f"in the {bits} bits of {algorithm}"
    )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single value"
