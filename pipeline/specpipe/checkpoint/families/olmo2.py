"""OLMo 2: Llama that norms what attention and the MLP return, and whole queries and keys."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import DEFAULTS as LLAMA
from specpipe.checkpoint.families.parts import (
    attention,
    decoder,
    gated_mlp,
    ignored,
    no_keys,
    norm,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {**LLAMA, "vocab_size": 50304, "rms_norm_eps": 1e-5}


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; `attention_bias` is of all four projections."""
    require_act(hf, "silu")
    bias = hf.flag("attention_bias")
    return replace(
        rms_decoder(hf, dtype, "Olmo2ForCausalLM"),
        attn_bias=bias,
        qk_layernorm=True,
        upstream_since=None,
        arithmetic=Arithmetic(
            dense_bias=bias, pre_norms=False, post_norms=True, qk_norm="projection"
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *gated_mlp(f"{ours}mlp", f"{theirs}mlp", model),
        *norm(f"{ours}post_feedforward_layernorm", f"{theirs}post_feedforward_layernorm", model),
    ]


FAMILY = Family(read_config, tensors, no_keys, ignored, DEFAULTS)
