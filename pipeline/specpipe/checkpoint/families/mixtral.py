"""Mixtral 8x7B, 8x22B: Mistral with a mixture of experts; upstream builds it of `LLaMAConfig`."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import layer_windows, read_experts, require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import extra_config
from specpipe.checkpoint.families.parts import attention, decoder, experts, ignored, norm, router
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
ALIASES = {"num_local_experts": "num_experts"}


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; the gates of the chosen experts sum to one."""
    require_act(hf, "silu")
    model = rms_decoder(hf, dtype, "MixtralForCausalLM")
    return replace(
        model,
        hidden_act="swiglu",
        moe=read_experts(hf, "num_local_experts"),
        arithmetic=Arithmetic(sliding_windows=layer_windows(hf, model)),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    count, block = model.num_experts, f"{theirs}block_sparse_moe"
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        router(f"{ours}mlp.router.weight", f"{block}.gate.weight", model, count),
        *experts(f"{ours}mlp", f"{block}.experts", model, count, ("w1", "w3", "w2")),
    ]


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS, ALIASES)
