"""InternLM2 and 2.5: Llama's arithmetic under other names, query, key and value in one matrix."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import extra_config
from specpipe.checkpoint.families.parts import (
    Names,
    decoder,
    fused_attention,
    gated_mlp,
    ignored,
    norm,
    sort_groups,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

# of InternLM2Config in the models' own configuration_internlm2.py; transformers has no such class
DEFAULTS: dict[str, Any] = {
    "vocab_size": 103168, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bias": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of an InternLM2 config; `bias` is of all four projections."""
    require_act(hf, "silu")
    bias = hf.flag("bias")
    return replace(
        rms_decoder(hf, dtype, "InternLM2ForCausalLM"),
        attn_bias=bias,
        arithmetic=Arithmetic(dense_bias=bias),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer, Names(embedding="model.tok_embeddings", head="output"))


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    qkv, sort = ("wqkv", "wo"), sort_groups(model)
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}attention_norm", model),
        *fused_attention(f"{ours}attention", f"{theirs}attention", model, qkv, sort),
        *norm(f"{ours}post_layernorm", f"{theirs}ffn_norm", model),
        *gated_mlp(f"{ours}mlp", f"{theirs}feed_forward", model, ("w1", "w3", "w2")),
    ]


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
