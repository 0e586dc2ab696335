"""Reads config.json as upstream does: its defaults, its rules, and missing keys.

Sources: `PretrainedConfig` (tensorrt_llm/models/modeling_utils.py), the config classes next to it,
and cpp/tensorrt_llm/runtime/gptJsonConfig.cpp.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from specpipe.checkpoint.inspection.records import (
    InspectedModel,
    InspectionFinding,
    Ranks,
    Speculation,
)

Json = Mapping[str, Any]

_CONVERT = "convert the model again"
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_WHOLE = (
    *_REQUIRED,
    "num_key_value_heads",
    "intermediate_size",
    "head_size",
    "max_position_embeddings",
    "num_medusa_heads",
    "num_medusa_layers",
    "num_eagle_layers",
    "max_draft_len",
    "redrafter_num_layers",
    "redrafter_hidden_size",
    "redrafter_exit_dim",
    "redrafter_num_beams",
    "redrafter_draft_len_per_beam",
)
# Beyond these nothing is a model, and damage must not keep us busy.
_MOST = {
    "num_hidden_layers": 4096,
    "num_medusa_heads": 256,
    "num_medusa_layers": 256,
    "redrafter_num_layers": 256,
    "num_eagle_layers": 256,
    "num_experts": 4096,
}
# upstream's classes of a target with a ReDrafter -> the target's own
REDRAFTERS = {
    "ReDrafterForCausalLM": "LlamaForCausalLM",
    "ReDrafterForLLaMALM": "LlamaForCausalLM",
    "ReDrafterForQWenLM": "Qwen2ForCausalLM",
}
_DTYPES = ("float16", "bfloat16", "float32")
# kind of RoPE scaling -> the factors without which it cannot be computed
_FACTORS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def whole(raw: Json, key: str) -> int | None:
    """Return a positive whole number of plausible size; None if there is none."""
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 < value <= _MOST.get(key, 2**31) else None


def text(raw: Json, key: str) -> str | None:
    """Return a text; None if there is none."""
    value = raw.get(key)
    return value if isinstance(value, str) else None


def table(raw: Json, key: str) -> Json:
    """Return a JSON object; an empty one if there is none."""
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def describe_model(raw: Json) -> InspectedModel:
    """Return the facts, with upstream's defaults where it has some."""
    full = complete(raw)
    base = full.get("rotary_base")
    quantization = table(full, "quantization")
    return InspectedModel(
        architecture=text(full, "architecture"),
        base=text(full, "model_type") or text(full, "base_model_architecture"),
        dtype=text(full, "dtype"),
        rotary_base=float(base) if isinstance(base, int | float) else None,
        rotary_scaling=rope_kind(full),
        quantization=text(quantization, "quant_algo"),
        kv_cache_quantization=text(quantization, "kv_cache_quant_algo"),
        **{
            key: whole(full, key)
            for key in (
                "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size",
                "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings",
            )
        },
    )  # fmt: skip


def complete(raw: Json) -> dict[str, Any]:
    """Return config.json with the values that upstream assumes where keys are missing."""
    full = {key: value for key, value in raw.items() if value is not None}
    hidden, heads = whole(full, "hidden_size"), whole(full, "num_attention_heads")
    if heads is not None:
        full.setdefault("num_key_value_heads", heads)
    if hidden is not None:
        full.setdefault("intermediate_size", 4 * hidden)
        if heads is not None:
            full.setdefault("head_size", hidden // heads)
    return {"norm_epsilon": 1e-5, "rotary_base": 10000.0, "hidden_act": "gelu", **full}


def describe_speculation(raw: Json, mode: str | None = None) -> Speculation:
    """Return how the model drafts, as far as its config shows."""
    return Speculation(
        mode,
        whole(raw, "max_draft_len"),
        whole(raw, "num_medusa_heads"),
        whole(raw, "num_medusa_layers"),
        whole(raw, "redrafter_num_beams"),
        whole(raw, "redrafter_draft_len_per_beam"),
        whole(raw, "num_eagle_layers"),
        whole(table(raw, "eagle3"), "draft_vocab_size"),
        _layer_ids(table(raw, "eagle3")),
    )


def _layer_ids(drafter: Json) -> tuple[int, ...]:
    given = drafter.get("layer_ids")
    return tuple(n for n in given if isinstance(n, int)) if isinstance(given, list) else ()


def describe_ranks(raw: Json) -> Ranks | None:
    """Return over how many GPUs the model is spread; None if that cannot be told."""
    mapping = table(raw, "mapping")
    sizes = [mapping.get(key, 1) for key in ("tp_size", "pp_size", "moe_ep_size")]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in sizes):
        return None
    tp_size, pp_size, moe_ep_size = sizes
    if min(tp_size, pp_size) < 1 or tp_size * pp_size > 4096:
        return None
    return Ranks(tp_size, pp_size, max(1, moe_ep_size))  # -1: upstream's "not given"


def check_config(raw: Json) -> Iterator[InspectionFinding]:
    """Yield everything that is wrong with config.json by itself."""
    yield from _check_keys(raw)
    yield from _check_mapping(raw)
    yield from _check_rope(raw)
    yield from _check_medusa(raw)
    yield from _check_drafter(raw)


def is_legible(raw: Json) -> bool:
    """Tell whether config.json can be taken for the description of a model."""
    moe = raw.get("moe")
    experts = not moe or (isinstance(moe, dict) and whole(moe, "num_experts") is not None)
    needed = all(whole(raw, key) is not None for key in _REQUIRED)
    return experts and needed and all(raw.get(k) is None or whole(raw, k) for k in _WHOLE)


def _check_keys(raw: Json) -> Iterator[InspectionFinding]:
    if not text(raw, "architecture"):
        yield InspectionFinding("config.json names no architecture", _CONVERT)
    missing = [key for key in _REQUIRED if raw.get(key) is None]
    if missing:
        yield InspectionFinding(f"config.json lacks {', '.join(missing)}", _CONVERT)
    for key in _WHOLE:
        if raw.get(key) is not None and whole(raw, key) is None:
            yield InspectionFinding(
                f"config.json: '{key}' is {raw[key]!r}: must be a positive whole number "
                "of a size that models have",
                _CONVERT,
            )
    if raw.get("dtype") not in _DTYPES:
        yield InspectionFinding(
            f"config.json: 'dtype' is {raw.get('dtype')!r}: TensorRT-LLM takes "
            f"{', '.join(_DTYPES)}",
            _CONVERT,
        )


def _check_mapping(raw: Json) -> Iterator[InspectionFinding]:
    ranks, mapping = describe_ranks(raw), table(raw, "mapping")
    if ranks is None:
        yield InspectionFinding(f"config.json: 'mapping' is {raw.get('mapping')!r}", _CONVERT)
        return
    cp_size = mapping.get("cp_size", 1)
    world = mapping.get("world_size", ranks.count)
    if isinstance(cp_size, int) and world != ranks.count * cp_size:
        yield InspectionFinding(
            f"config.json: world_size is {world}, but tp_size {ranks.tp_size} x pp_size "
            f"{ranks.pp_size} x cp_size {cp_size} make {ranks.count * cp_size}",
            "correct 'mapping', or convert the model again",
        )


def rope_kind(raw: Json) -> str | None:
    """Return the kind of RoPE scaling; None if there is none."""
    scaling = table(raw, "rotary_scaling")
    kind = scaling.get("rope_type", scaling.get("type"))
    return str(kind) if kind is not None else None


def _check_rope(raw: Json) -> Iterator[InspectionFinding]:
    scaling, kind = table(raw, "rotary_scaling"), rope_kind(raw)
    lacks = [key for key in _FACTORS.get(kind or "", ()) if scaling.get(key) is None]
    if lacks:
        yield InspectionFinding(
            f"rotary_scaling is of type {kind}, but lacks {', '.join(lacks)}: positions are wrong "
            "from the first token on",
            "copy the whole rope_scaling of the model's own config.json, or convert it again",
        )
    head, turned = whole(raw, "head_size"), raw.get("rotary_embedding_dim")
    if head is not None and isinstance(turned, int) and turned > head:
        yield InspectionFinding(
            f"rotary_embedding_dim is {turned}, but a head has {head} values", _CONVERT
        )


def _check_medusa(raw: Json) -> Iterator[InspectionFinding]:
    if raw.get("architecture") != "MedusaForCausalLM":
        return
    keys = ("num_medusa_heads", "num_medusa_layers", "max_draft_len")
    lacks = [key for key in keys if whole(raw, key) is None]
    if lacks:
        yield InspectionFinding(
            f"a Medusa checkpoint needs {', '.join(lacks)} in config.json", _CONVERT
        )
    if not text(raw, "model_type"):
        yield InspectionFinding(
            "config.json has no model_type, so TensorRT-LLM takes the base for a Llama",
            "add the model_type of the target's own config.json",
        )


# architecture -> the keys that its upstream class and the runtime cannot do without
_DRAFTERS = {
    "EagleForCausalLM": ("num_eagle_layers", "max_non_leaves_per_layer", "max_draft_len"),
    **dict.fromkeys(REDRAFTERS, tuple(key for key in _WHOLE if key.startswith("redrafter_"))),
}


def _check_drafter(raw: Json) -> Iterator[InspectionFinding]:
    architecture = text(raw, "architecture") or ""
    lacks = [key for key in _DRAFTERS.get(architecture, ()) if whole(raw, key) is None]
    if architecture == "EagleForCausalLM" and not table(raw, "eagle_net_config"):
        lacks.append("eagle_net_config")
    if architecture in REDRAFTERS:
        switches = ("redrafter_is_rnn", "redrafter_greedy_search")
        lacks += [key for key in switches if not isinstance(raw.get(key), bool)]
    if lacks:
        yield InspectionFinding(f"{architecture} needs {', '.join(lacks)} in config.json", _CONVERT)
    elif architecture in REDRAFTERS and raw["redrafter_hidden_size"] != raw.get("hidden_size"):
        yield InspectionFinding(
            f"redrafter_hidden_size is {raw['redrafter_hidden_size']}, but the hidden states have "
            f"{raw.get('hidden_size')} values",
            "convert the model again, with a drafter that was trained for it",
        )
    if architecture == "EagleForCausalLM" and (ranks := describe_ranks(raw)):
        if ranks.pp_size > 1:
            yield InspectionFinding(
                f"EAGLE has no pipeline stages, but pp_size is {ranks.pp_size}",
                "set engine.pp_size to 1, and spread the model with engine.tp_size",
            )
        if (whole(raw, "max_draft_len") or 0) > 256:
            yield InspectionFinding("EAGLE drafts at most 256 tokens a step", "lower max_draft_len")


def remark_config(raw: Json) -> Iterator[str]:
    """Yield what is worth knowing about config.json, and nothing wrong by itself."""
    rotary = text(raw, "position_embedding_type") in ("rope_gpt_neox", "rope_gptj")
    if rotary and raw.get("rotary_base") is None:
        yield "config.json has no rotary_base, so TensorRT-LLM assumes 10000"
    if raw.get("head_size") is None:
        yield "config.json has no head_size, so TensorRT-LLM divides hidden_size by the heads"
    base, length = raw.get("rotary_base"), whole(raw, "max_position_embeddings") or 0
    if base == 500000 and length > 8192 and rope_kind(raw) is None:
        yield (
            f"rotary_base 500000 with {length} positions and no rotary_scaling: Llama 3.1 and "
            "later have llama3 scaling; if this is one of them, its factors were lost"
        )
