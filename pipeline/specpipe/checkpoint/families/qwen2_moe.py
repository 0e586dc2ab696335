"""Qwen1.5-MoE, Qwen2-57B-A14B: many small experts, and one that every token passes."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, Shard, TensorPlan
from specpipe.checkpoint.families.hf import need, require_act, rms_decoder
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
from specpipe.checkpoint.families.qwen2 import qwen_keys, windows
from specpipe.core.errors import Unsupported
from specpipe.core.model import Arithmetic, Dtype, Experts, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported where layers without experts lie between others."""
    require_act(hf, "silu")
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise Unsupported(
            "config.json has layers without experts (mlp_only_layers, decoder_sparse_step); "
            "upstream's class knows layers of one kind only"
        )
    mode = 1 if hf.get("norm_topk_prob") else 0
    return replace(
        rms_decoder(hf, dtype, "Qwen2MoeForCausalLM"),
        attn_bias=bool(hf.get("qkv_bias", True)),
        hidden_act="swiglu",
        moe=Experts(need(hf, "num_experts"), need(hf, "num_experts_per_tok"), mode),
        moe_intermediate_size=need(hf, "moe_intermediate_size"),
        moe_shared_expert_intermediate_size=need(hf, "shared_expert_intermediate_size"),
        arithmetic=Arithmetic(sliding_windows=windows(hf), shared_expert_gate=True),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    count, mlp = model.num_experts, f"{theirs}mlp"
    gate = "shared_expert_gate.weight"
    parts = ("gate_proj", "up_proj", "down_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        router(f"{ours}mlp.router.weight", f"{mlp}.gate.weight", model, count),
        *experts(f"{ours}mlp", f"{mlp}.experts", model, count, parts),
        *_shared_expert(f"{ours}mlp.shared_expert", f"{mlp}.shared_expert", model),
        copy(f"{ours}mlp.{gate}", f"{mlp}.{gate}", 1, model.hidden_size),
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


FAMILY = Family(read_config, tensors, extra_config, ignored)
