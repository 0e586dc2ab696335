"""The formats of `engine.quantization`: upstream's names, excluded modules, possible models.

`quantization` in config.json is upstream's `QuantConfig` (tensorrt_llm/models/modeling_utils.py),
which refuses keys that it does not know.
"""

import fnmatch
import re
from dataclasses import dataclass

from specpipe.checkpoint.families import TensorPlan
from specpipe.checkpoint.quantized.arithmetic import FP4_GROUP
from specpipe.checkpoint.quantized.experts import quantized_module
from specpipe.config.run_config import EngineOptions
from specpipe.core.errors import Rejection
from specpipe.core.model import CacheQuantization, ModelConfig, Quantization

ALGORITHMS: dict[Quantization, str | None] = {
    "none": None,
    "int8": "W8A16",
    "int4": "W4A16",
    "fp8": "FP8",
    "int4_awq": "W4A16_AWQ",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "nvfp4": "NVFP4",
}
CACHE_ALGORITHMS: dict[CacheQuantization, str | None] = {
    "none": None,
    "int8": "INT8",
    "fp8": "FP8",
}
CALIBRATED: tuple[Quantization, ...] = ("fp8", "int4_awq", "int8_sq", "nvfp4")
WEIGHT_ONLY: tuple[Quantization, ...] = ("int8", "int4")  # trtllm-build quantises, not we
GROUPS = (128, 64)  # columns that share an int4 scale; what upstream's kernels take
LINEARS = (
    "attention.qkv",
    "attention.dense",
    "mlp.fc",
    "mlp.gate",
    "mlp.proj",
    "mlp.shared_expert.fc",
    "mlp.shared_expert.proj",
)
# Why experts have no such weights, and what they have instead.
NO_EXPERTS: dict[Quantization, tuple[str, str]] = {
    "int8_sq": (
        "TensorRT-LLM has no SmoothQuant for experts: its quantize.py replaces linear layers only",
        "set engine.quantization: fp8, or int8",
    ),
    "nvfp4": (
        "TensorRT-LLM's loader reads the NVFP4 scales of matrices only, not those of stacked "
        "experts",
        "set engine.quantization: fp8",
    ),
}
# What upstream's quantize_layers leaves out if it is told nothing.
LEFT_OUT = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
GUESSERS = (
    "*medusa_heads*",
    "*eagle_nets*",
    "*drafter*",
)  # what guesses in a checkpoint, of any method


@dataclass(frozen=True)
class Quantizing:
    """How the weights and the KV cache of a checkpoint are to be quantised."""

    weights: Quantization = "none"
    kv_cache: CacheQuantization = "none"
    exclude_modules: tuple[str, ...] | None = None  # None: what upstream leaves out, and drafters
    tp_size: int = 1
    moe_tp_size: int = 1  # ranks that share each expert
    group: int | None = None  # columns that share an int4 scale; None: as many as fit
    zero_point: bool = False  # int4 weights that others made have one, ours an input scale
    prompts: tuple[str, ...] = ()  # run through the model where it is calibrated

    @property
    def calibrated(self) -> bool:
        """Whether prompts must be run through the model."""
        return self.weights in CALIBRATED or self.kv_cache == "int8"

    def excluded(self, model: ModelConfig) -> tuple[str, ...]:
        """Return the patterns of the modules that stay as they are."""
        if self.exclude_modules is not None:
            return self.exclude_modules
        return (*LEFT_OUT, f"*{model.drafter_module}*") if model.drafter_module else LEFT_OUT

    def includes(self, plan: TensorPlan, model: ModelConfig) -> bool:
        """Tell whether weights are quantised: of a linear layer, or experts, that none excludes."""
        module = quantized_module(plan)
        return plan.name.removesuffix(".weight").endswith(LINEARS) and not any(
            fnmatch.fnmatchcase(module, pattern) for pattern in self.excluded(model)
        )


PLAIN = Quantizing()


def metadata(quantizing: Quantizing, model: ModelConfig) -> dict[str, object]:
    """Return `quantization` of config.json."""
    entries: dict[str, object] = {
        "quant_algo": ALGORITHMS[quantizing.weights],
        "kv_cache_quant_algo": CACHE_ALGORITHMS[quantizing.kv_cache],
    }
    if quantizing.weights == "none":
        return entries
    patterns = quantizing.excluded(model)
    if quantizing.weights in WEIGHT_ONLY:
        # trtllm-build matches modules when it makes layers, but tensors when it quantises them.
        patterns = tuple(p for pattern in patterns for p in (pattern, f"{pattern}.weight"))
    entries["exclude_modules"] = list(patterns)
    if quantizing.weights == "int4_awq":
        entries["group_size"] = group_size(quantizing, model)
        entries["has_zero_point"] = quantizing.zero_point
        entries["pre_quant_scale"] = not quantizing.zero_point
    return entries


def group_size(quantizing: Quantizing, model: ModelConfig) -> int | None:
    """Return how many columns share an int4 scale: the largest that fits; None if none does.

    Upstream pads layers whose inputs or outputs do not divide by group times ranks, and would then
    refuse our tensors, which are not padded.
    """
    sizes = GROUPS if quantizing.group is None else (quantizing.group,)
    widths, tp = _widths(model), quantizing.tp_size
    each = model.expert_size if model.moe else 0
    return next(
        (
            g
            for g in sizes
            if all(w % (g * tp) == 0 for w in widths) and each % (g * quantizing.moe_tp_size) == 0
        ),
        None,
    )


def _widths(model: ModelConfig) -> tuple[int, ...]:
    """Return the widths of all layers that every rank has a part of; not those of experts."""
    queries = model.num_attention_heads * model.head_size
    keys = model.num_key_value_heads * model.head_size
    inner = model.moe_shared_expert_intermediate_size if model.moe else model.intermediate_size
    return (model.hidden_size, queries, queries + 2 * keys, *([inner] if inner else []))


def check_quantizing(
    quantizing: Quantizing, model: ModelConfig, engine: EngineOptions
) -> list[Rejection]:
    """Return every reason why a model cannot be quantised so for the engine that is asked for."""
    if quantizing.weights == "none":
        return []
    found = _check_patterns(quantizing, model, engine) + _check_widths(quantizing, model, engine)
    if quantizing.weights in NO_EXPERTS and model.moe is not None:
        found.append(Rejection(*NO_EXPERTS[quantizing.weights]))
    return found


def _check_widths(
    quantizing: Quantizing, model: ModelConfig, engine: EngineOptions
) -> list[Rejection]:
    tp, widths = quantizing.tp_size, _widths(model)
    if quantizing.weights == "int4_awq" and group_size(quantizing, model) is None:
        unit, experts = quantizing.group or GROUPS[-1], ""
        if model.moe:
            experts = f", and experts of {model.expert_size} over {quantizing.moe_tp_size} ranks"
        return [
            Rejection(
                f"int4_awq needs widths that divide by {unit} times tp_size {tp}, the model has "
                f"{widths}{experts}",
                f"{_fewer(tp)}set engine.quantization: int4",
            )
        ]
    # upstream interleaves scales in tiles of 128 rows and 4 groups, and does not pad them
    unit = FP4_GROUP if engine.traits.own_engine else 128
    if quantizing.weights == "nvfp4" and any(w % (unit * tp) for w in widths):
        return [
            Rejection(
                f"nvfp4 needs widths that divide by {unit} times tp_size {tp}, the model has "
                f"{widths}",
                f"{_fewer(tp)}set engine.quantization: fp8",
            )
        ]
    return []


def _fewer(tp: int) -> str:
    return "lower engine.tp_size, or " if tp > 1 else ""


def _check_patterns(
    quantizing: Quantizing, model: ModelConfig, engine: EngineOptions
) -> list[Rejection]:
    patterns, found = quantizing.excluded(model), []
    kept = {"lm_head": "lm_head", "vocab_embedding": "transformer.vocab_embedding"}
    if model.drafter_module:
        kept[model.drafter_module] = f"{model.drafter_module}.0.linear"
    for name, module in kept.items():
        if not any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns):
            found.append(
                Rejection(
                    f"engine.exclude_modules replaces upstream's list and does not name {module}, "
                    "which is not quantised here",
                    f"add '*{name}*' to the list",
                )
            )
    if engine.pp_size > 1 and any(re.search(r"layers\.\d", pattern) for pattern in patterns):
        found.append(
            Rejection(
                "engine.exclude_modules names a layer by number, but upstream counts the layers of "
                "each pipeline stage from 0",
                "use patterns without layer numbers, or set engine.pp_size: 1",
            )
        )
    return found
