"""Qwen1.5-MoE, Qwen2-57B-A14B: many small experts, and one that every token passes."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, Shard, TensorPlan
from specpipe.checkpoint.families.hf import layer_windows, read_experts, require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    attention,
    copy,
    decoder,
    experts,
    ignored,
    linear,
    norm,
    router,
)
from specpipe.checkpoint.families.qwen2 import qwen_keys
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632,
    "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "sliding_window": 4096, "max_window_layers": 28,
    "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4, "num_experts": 60,
    "qkv_bias": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported where layers without experts lie between others."""
    require_act(hf, "silu")
    require_experts_everywhere(hf)
    model = rms_decoder(hf, dtype, "Qwen2MoeForCausalLM")
    mode = 1 if hf.flag("norm_topk_prob") else 0
    return replace(
        model,
        attn_bias=hf.flag("qkv_bias"),
        hidden_act="swiglu",
        moe=read_experts(hf, "num_experts", mode),
        moe_intermediate_size=hf.whole("moe_intermediate_size"),
        moe_shared_expert_intermediate_size=hf.whole("shared_expert_intermediate_size"),
        arithmetic=Arithmetic(sliding_windows=_windows(hf, model), shared_expert_gate=True),
    )


def require_experts_everywhere(hf: Keys) -> None:
    """Raise Unsupported where layers without experts lie between others."""
    if hf.places("mlp_only_layers") or hf.whole("decoder_sparse_step") != 1:
        raise hf.unsupported(
            "has layers without experts (mlp_only_layers, decoder_sparse_step); "
            "upstream's class knows layers of one kind only",
            hint="backend: llmapi serves the model without conversion",
        )


def _windows(hf: Keys, model: ModelConfig) -> tuple[int, ...]:
    """Return the sliding windows of the layers that `layer_types` lists as sliding.

    Raises Unsupported without the list: transformers 4 and 5 let other layers slide then.
    """
    found = layer_windows(hf, model, lambda layer: True)
    if not hf.flag("use_sliding_window"):
        return ()
    if found and not hf.words("layer_types"):
        raise hf.unsupported(
            "has use_sliding_window: true, but no layer_types; transformers 4 and 5 differ in the "
            "layers that slide then",
            hint="list the layers as they were trained: full_attention or sliding_attention",
        )
    return found


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    shared, gate = f"{theirs}mlp.shared_expert", "shared_expert_gate.weight"
    return [
        *routed_layer(model, ours, theirs),
        *_shared_expert(f"{ours}mlp.shared_expert", shared, model),
        copy(f"{ours}mlp.{gate}", f"{theirs}mlp.{gate}", 1, model.hidden_size),
    ]


def routed_layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    """Plan a layer of Qwen's mixtures, without what every token passes."""
    count, mlp = model.num_experts, f"{theirs}mlp"
    parts = ("gate_proj", "up_proj", "down_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        router(f"{ours}mlp.router.weight", f"{mlp}.gate.weight", model, count),
        *experts(f"{ours}mlp", f"{mlp}.experts", model, count, parts),
    ]


def _shared_expert(ours: str, theirs: str, model: ModelConfig) -> list[TensorPlan]:
    hidden, inner = model.hidden_size, model.moe_shared_expert_intermediate_size
    into = [(f"{theirs}.up_proj", inner), (f"{theirs}.gate_proj", inner)]
    out = [(f"{theirs}.down_proj", hidden)]
    plans = linear(f"{ours}.fc", into, hidden, Shard.GATED, bias=False)
    return plans + linear(f"{ours}.proj", out, inner, Shard.COLUMNS, bias=False)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `QWenConfig`."""
    return qwen_keys("qwen2_moe")


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
