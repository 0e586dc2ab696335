"""Phi-3 and Phi-4: fused matrices for query, key and value, and for the gated MLP."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, Shard, TensorPlan
from specpipe.checkpoint.families.hf import (
    ROPE_TYPES,
    all_layers,
    layer_windows,
    require_act,
    rms_decoder,
    rotary_width,
    unmet,
)
from specpipe.checkpoint.families.parts import (
    decoder,
    fused_attention,
    halves_swapped,
    ignored,
    linear,
    norm,
)
from specpipe.core.errors import ConfigError
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; LongRoPE's `original_max_position_embeddings` goes with its factors."""
    require_act(hf, "silu")
    model = rms_decoder(hf, dtype, "Phi3ForCausalLM", (*ROPE_TYPES, "longrope"))
    heads_width = model.head_size * model.num_attention_heads
    width = rotary_width(hf, model.head_size, 1.0)
    long = (model.rotary_scaling or {}).get("rope_type") == "longrope"
    return replace(
        model,
        hidden_act="swiglu",
        position_embedding_type="long_rope" if long else "rope_gpt_neox",
        rotary_scaling=_long_rope(hf, model) if long else model.rotary_scaling,
        rotary_embedding_dim=width,
        upstream_since=(1, 0) if width < model.head_size else (0, 0),
        upstream_limits=unmet(heads=heads_width != model.hidden_size),
        arithmetic=Arithmetic(sliding_windows=layer_windows(hf, all_layers)),
    )


def _long_rope(hf: HfConfig, model: ModelConfig) -> dict[str, Any]:
    key, scaling = "original_max_position_embeddings", dict(model.rotary_scaling or {})
    original = scaling.get(key) or hf.get(key)
    if not original:
        raise ConfigError(f"config.json has rope scaling of type 'longrope', but no {key}")
    return {**scaling, key: original}


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    projections = ("qkv_proj", "o_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *fused_attention(f"{ours}attention", f"{theirs}self_attn", model, projections, None),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *_fused_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


def _fused_mlp(ours: str, theirs: str, model: ModelConfig) -> list[TensorPlan]:
    """HF's matrix holds the gate first, upstream's last."""
    hidden, inner = model.hidden_size, model.intermediate_size
    into = [(f"{theirs}.gate_up_proj", 2 * inner)]
    out = [(f"{theirs}.down_proj", hidden)]
    plans = linear(f"{ours}.fc", into, hidden, Shard.GATED, bias=False)
    plans = [replace(plan, join=halves_swapped) for plan in plans]
    return plans + linear(f"{ours}.proj", out, inner, Shard.COLUMNS, bias=False)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `Phi3Config`, which takes LongRoPE's factors one by one."""
    scaling = model.rotary_scaling
    share = {"rotary_pct": model.rotary_dim / model.head_size}
    if scaling is None or model.position_embedding_type != "long_rope":
        return share
    return {
        **share,
        "original_max_position_embeddings": scaling["original_max_position_embeddings"],
        "longrope_scaling_short_factors": list(scaling["short_factor"]),
        "longrope_scaling_long_factors": list(scaling["long_factor"]),
    }


FAMILY = Family(read_config, tensors, extra_config, ignored)
