"""Mixtral 8x7B, 8x22B: Mistral with a mixture of experts; upstream builds it of `LLaMAConfig`."""

from dataclasses import replace

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import (
    all_layers,
    layer_windows,
    need,
    require_act,
    rms_decoder,
)
from specpipe.checkpoint.families.llama import extra_config
from specpipe.checkpoint.families.parts import attention, decoder, experts, ignored, norm, router
from specpipe.core.model import Arithmetic, Dtype, Experts, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; the gates of the chosen experts sum to one."""
    require_act(hf, "silu")
    return replace(
        rms_decoder(hf, dtype, "MixtralForCausalLM"),
        hidden_act="swiglu",
        moe=Experts(need(hf, "num_local_experts"), need(hf, "num_experts_per_tok")),
        arithmetic=Arithmetic(sliding_windows=layer_windows(hf, all_layers)),
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


FAMILY = Family(read_config, tensors, extra_config, ignored)
