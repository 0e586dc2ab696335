"""Quantization as part of conversion: the tensors that it writes, and their inputs."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from specpipe.checkpoint.families import TensorPlan, text_part
from specpipe.checkpoint.quantized.calibrate import MISSING, calibrate, modelopt_version
from specpipe.checkpoint.quantized.calibration import (
    Calibration,
    read_calibration,
    write_calibration,
)
from specpipe.checkpoint.quantized.experts import is_stack
from specpipe.checkpoint.quantized.foreign import (
    Foreign,
    find_foreign,
    foreign_plans,
    left_out,
    require_readable,
)
from specpipe.checkpoint.quantized.formats import (
    CALIBRATED,
    NO_EXPERTS,
    PLAIN,
    WEIGHT_ONLY,
    Quantizing,
    check_quantizing,
    group_size,
)
from specpipe.checkpoint.quantized.plans import modules_of, quantized_plans
from specpipe.checkpoint.source import Source, TensorReader
from specpipe.config.run_config import EngineOptions
from specpipe.core.artifacts import digest_json
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.model import ModelConfig

NOTHING = Calibration({}, {}, {})


def quantizing_of(engine: EngineOptions, prompts: Sequence[str] = ()) -> Quantizing:
    """Return how the checkpoints of a run are quantised, calibrated with `prompts`.

    The CPU engine makes its own int8 and int4 weights of plain ones when it is compiled.
    """
    ours = engine.traits.own_engine and engine.quantization in WEIGHT_ONLY
    return Quantizing(
        "none" if ours else engine.quantization,
        engine.kv_cache_quantization,
        engine.exclude_modules,
        engine.tp_size or 1,
        max(1, (engine.tp_size or 1) // engine.moe_ep_size),
        prompts=tuple(prompts),
    )


def quantize(
    source: Source,
    plans: list[TensorPlan],
    model: ModelConfig,
    quantizing: Quantizing,
    reader: TensorReader,
    out: Path,
) -> tuple[list[TensorPlan], Quantizing]:
    """Return the plans of the quantised checkpoint, and config.json's section on it.

    Calibrates first where the format needs it, unless `out` holds a calibration, and writes that
    there. Raises what `calibrate` and `find_foreign` raise.
    """  # fmt: skip
    foreign = find_foreign(source)
    require_own_names(source, foreign, quantizing)
    if foreign is not None:
        require_readable(reader, foreign, source)
        excluded = left_out(plans, foreign, reader.names())
        found = replace(_foreign_quantizing(quantizing, foreign), exclude_modules=excluded)
        foreign = replace(foreign, kv_cache=found.kv_cache)
        return foreign_plans(plans, foreign, model, reader.names()), found
    require_experts_fit(plans, quantizing, model)
    calibration = NOTHING
    if quantizing.calibrated:
        calibration = read_calibration(out) or _calibrate(source, plans, model, quantizing, out)
    return quantized_plans(plans, quantizing, model, calibration), quantizing


def stored_plans(
    source: Source, plans: list[TensorPlan], model: ModelConfig, reader: TensorReader
) -> list[TensorPlan]:
    """Return the plans of a model whose tensors are read as they are stored, quantised or not.

    Raises what `quantize` raises for a checkpoint that others quantised.
    """
    foreign = find_foreign(source)
    if foreign is None:
        return plans
    require_own_names(source, foreign)
    require_readable(reader, foreign, source)
    left_out(plans, foreign, reader.names())
    return foreign_plans(plans, foreign, model, reader.names())


def require_own_names(
    source: Source, foreign: Foreign | None, quantizing: Quantizing = PLAIN
) -> None:
    """Raise Unsupported for the text model among several, if it is quantised or calibrated.

    Its modules have other names in transformers than its tensors have here.
    """
    if not text_part(source.hf_config, source.config_file)[1]:
        return
    if foreign is not None or quantizing.calibrated:
        raise Unsupported(
            f"{source.path}: the text model is within a model for images, and as such it can be "
            "converted only from 16 bits, and to formats without calibration",
            hint="save the text model by itself, or use engine.quantization: none, int8 or int4",
        )


def require_experts_fit(
    plans: list[TensorPlan], quantizing: Quantizing, model: ModelConfig
) -> None:
    """Raise Unsupported if experts are to have a format that they cannot have."""
    reason, hint = NO_EXPERTS.get(quantizing.weights, ("", ""))
    for plan in plans:
        if reason and is_stack(plan) and quantizing.includes(plan, model):
            raise Unsupported(f"{plan.name}: {reason}", hint=hint)


def _foreign_quantizing(quantizing: Quantizing, foreign: Foreign) -> Quantizing:
    return replace(
        quantizing,
        weights=foreign.weights,
        kv_cache=quantizing.kv_cache if foreign.kv_cache == "none" else foreign.kv_cache,
        group=foreign.group or None,
        zero_point=foreign.weights == "int4_awq",
    )


def _calibrate(
    source: Source, plans: list[TensorPlan], model: ModelConfig, quantizing: Quantizing, out: Path
) -> Calibration:
    linears = [
        module
        for plan in plans
        if quantizing.weights in CALIBRATED and quantizing.includes(plan, model)
        for module in modules_of(plan)
    ]
    caches = [
        module
        for plan in plans
        if quantizing.kv_cache == "int8" and plan.name.endswith("attention.qkv.weight")
        for module in modules_of(plan)[-2:]
    ]
    found = calibrate(
        source, quantizing, linears=linears, caches=caches, group=group_size(quantizing, model),
        prompts=quantizing.prompts,
    )  # fmt: skip
    write_calibration(found, out)
    return found


def quantization_inputs(source: Source, quantizing: Quantizing) -> dict[str, str]:
    """Name what decides the bytes of a quantized checkpoint besides the model; empty if plain."""
    if (quantizing.weights, quantizing.kv_cache) == ("none", "none"):
        return {}
    inputs = {
        "weights in": quantizing.weights,
        "KV cache in": quantizing.kv_cache,
        "exclude_modules": repr(quantizing.exclude_modules),
    }
    if quantizing.calibrated and find_foreign(source) is None:
        inputs["calibration prompts"] = digest_json(list(quantizing.prompts))
        if quantizing.weights in CALIBRATED:
            inputs["nvidia-modelopt"] = modelopt_version() or "not installed"
    return inputs


def check_quantization(
    engine: EngineOptions, model: ModelConfig, source: Source | None
) -> list[Rejection]:
    """Return every reason why a model cannot be quantized, or read, as configured.

    Raises Unsupported if it is quantised in a way that cannot be read.
    """
    quantizing = quantizing_of(engine)
    foreign = find_foreign(source) if source else None
    if foreign is not None:
        asked = (engine.quantization, engine.kv_cache_quantization)
        readable = [(foreign.weights, foreign.kv_cache)]
        if foreign.kv_cache == "none":
            readable.append((foreign.weights, "fp8"))  # which needs no calibration
        if engine.traits.own_engine:
            readable = [(foreign.weights, "none")]  # a CPU keeps its cache as it is
        if asked not in readable:
            weights, cache = readable[0]
            return [
                Rejection(
                    f"the checkpoint is quantised already ({foreign.method}), but "
                    f"engine.quantization is {asked[0]}, engine.kv_cache_quantization {asked[1]}",
                    f"set engine.quantization: {weights} and engine.kv_cache_quantization: {cache}",
                )
            ]
        quantizing = _foreign_quantizing(quantizing, foreign)
    if source is not None:
        require_own_names(source, foreign, quantizing)
    return check_quantizing(quantizing, model, engine)


def check_calibration(engine: EngineOptions, sources: Iterable[Source | None]) -> list[Rejection]:
    """Return what this machine lacks to calibrate the models that are not quantised yet."""
    if engine.quantization not in CALIBRATED or modelopt_version() is not None:
        return []
    if all(source is not None and find_foreign(source) for source in sources):
        return []
    return [
        Rejection(
            f"engine.quantization: {engine.quantization} is calibrated with NVIDIA's "
            "Model-Optimizer, which is not installed",
            MISSING,
        )
    ]
