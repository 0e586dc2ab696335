"""Phi-3 and Phi-4: fused matrices for query, key and value, and for the gated MLP."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import layer_windows, require_act, rms_decoder, unmet
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    decoder,
    fused_attention,
    fused_mlp,
    ignored,
    norm,
)
from specpipe.checkpoint.families.rope import require_factors
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

_TABLES = ("rope_scaling", "rope_parameters")
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; the first releases call LongRoPE `su` or `yarn`.

    Its `original_max_position_embeddings` lies next to its factors, and goes with them.
    """
    require_act(hf, "silu")
    hf = _with_longrope(hf)
    model = rms_decoder(hf, dtype, "Phi3ForCausalLM", ("default", "longrope"), partial=True)
    heads_width = model.head_size * model.num_attention_heads
    scaling = model.rotary_scaling
    return replace(
        model,
        hidden_act="swiglu",
        position_embedding_type="long_rope" if scaling else "rope_gpt_neox",
        rotary_scaling={**scaling, **_factors(hf, model.rotary_dim)} if scaling else None,
        upstream_since=(1, 0) if model.rotary_dim < model.head_size else (0, 0),
        upstream_limits=unmet(heads=heads_width != model.hidden_size),
        arithmetic=Arithmetic(sliding_windows=layer_windows(hf, model)),
    )


def _with_longrope(hf: Keys) -> Keys:
    """Call a scaling with LongRoPE's factors by its name; yarn of the other models has none."""
    for name in _TABLES:
        rule = hf.table(name)
        if rule.has("short_factor"):
            old = {k: "longrope" for k in ("type", "rope_type") if rule.values.get(k) == "yarn"}
            hf = hf.with_values(**{name: {**rule.values, **old}})
    return hf


def _factors(hf: Keys, width: int) -> dict[str, Any]:
    """Return LongRoPE's factors, from the object that has them."""
    return require_factors(next(filter(lambda table: table.values, map(hf.table, _TABLES))), width)


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    projections = ("qkv_proj", "o_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *fused_attention(f"{ours}attention", f"{theirs}self_attn", model, projections, None),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *fused_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


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


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
