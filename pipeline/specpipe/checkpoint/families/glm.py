"""GLM-4 9B as transformers' `glm`: heads rotated in part, by neighbours, and a fused MLP."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    attention,
    decoder,
    fused_mlp,
    ignored,
    no_keys,
    norm,
)
from specpipe.core.model import Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696,
    "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7, "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
    "attention_bias": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF GLM config."""
    return glm_facts(hf, dtype, "GlmForCausalLM")


def glm_facts(hf: Keys, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return what all GLM have in common; `attention_bias` is of query, key and value."""
    require_act(hf, "silu")
    return replace(
        rms_decoder(hf, dtype, architecture, partial=True),
        position_embedding_type="rope_gptj",
        hidden_act="swiglu",
        attn_bias=hf.flag("attention_bias"),
        upstream_since=None,
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *fused_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


FAMILY = Family(read_config, tensors, no_keys, ignored, DEFAULTS)
