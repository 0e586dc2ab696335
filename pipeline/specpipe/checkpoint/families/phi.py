"""Phi-1, 1.5 and 2: LayerNorm, heads rotated in part, attention and MLP side by side."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder, unmet
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    Names,
    attention,
    decoder,
    ignored,
    norm,
    plain_mlp,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

GELU = ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh")
DEFAULTS: dict[str, Any] = {
    "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 24, "num_attention_heads": 32, "hidden_act": "gelu_new",
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported for normed queries, which no released Phi has."""
    if hf.flag("qk_layernorm"):
        raise hf.unsupported("has qk_layernorm: true; no released Phi has it")
    model = rms_decoder(hf, dtype, "PhiForCausalLM", epsilon="layer_norm_eps", partial=True)
    return replace(
        model,
        hidden_act=require_act(hf, *GELU),
        upstream_limits=model.upstream_limits
        + unmet(
            groups=model.num_key_value_heads != model.num_attention_heads,
            epsilon=model.norm_epsilon != 1e-5,
        ),
        attn_bias=True,
        mlp_bias=True,
        arithmetic=Arithmetic(
            layer_norm=True,
            gated_mlp=False,
            dense_bias=True,
            head_bias=True,
            residual="parallel_one_norm",
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer, Names(norm="model.final_layernorm"))


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model, "dense"),
        *plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, "fc1", "fc2"),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `PhiConfig`."""
    return {"rotary_pct": model.rotary_dim / model.head_size}


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
