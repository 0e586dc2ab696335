"""Qwen3-30B-A3B, Qwen3-235B-A22B: Qwen3 with a mixture of experts in every layer."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import layer_windows, read_experts
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import decoder, ignored
from specpipe.checkpoint.families.qwen2 import qwen_keys
from specpipe.checkpoint.families.qwen2_moe import require_experts_everywhere, routed_layer
from specpipe.checkpoint.families.qwen3 import normed_facts
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 24, "num_attention_heads": 32, "num_key_value_heads": 4,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "sliding_window": 4096, "decoder_sparse_step": 1,
    "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128,
}  # fmt: skip
ALIASES = {"num_experts": "num_local_experts"}


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; every layer slides if `use_sliding_window` is true, else none."""
    require_experts_everywhere(hf)
    model = normed_facts(hf, dtype, "Qwen3MoeForCausalLM")
    windows = layer_windows(hf, model) if hf.flag("use_sliding_window") else ()
    return replace(
        model,
        hidden_act="swiglu",
        moe=read_experts(hf, "num_experts", 1 if hf.flag("norm_topk_prob") else 0),
        moe_intermediate_size=hf.whole("moe_intermediate_size"),
        upstream_since=(1, 1),
        arithmetic=Arithmetic(sliding_windows=windows),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, routed_layer)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `QWenConfig`."""
    return qwen_keys("qwen3_moe")


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS, ALIASES)
