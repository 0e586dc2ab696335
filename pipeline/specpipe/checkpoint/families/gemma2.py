"""Gemma 2: Gemma with more norms, with soft caps, and with a window in every other layer.

Upstream's `post_layernorm` is the norm behind attention.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.gemma import ACT, add_one, gemma_facts
from specpipe.checkpoint.families.hf import layer_windows, require_act
from specpipe.checkpoint.families.parts import attention, decoder, gated_mlp, ignored, norm
from specpipe.core.model import Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; without `layer_types`, layers 0, 2, 4 ... slide."""
    require_act(hf, ACT, key="hidden_activation")
    model = gemma_facts(hf, dtype, "Gemma2ForCausalLM")
    windows = layer_windows({"sliding_window": 4096, **hf}, lambda i: i % 2 == 0)
    return replace(
        model,
        query_pre_attn_scalar=float(hf.get("query_pre_attn_scalar", 256)),
        attn_logit_softcapping=hf.get("attn_logit_softcapping", 50.0),
        final_logit_softcapping=hf.get("final_logit_softcapping", 30.0),
        arithmetic=replace(
            model.arithmetic,
            post_norms=True,
            mlp_norm="pre_feedforward_layernorm",
            sliding_windows=windows,
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return add_one(decoder(model, _layer))


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *norm(f"{ours}pre_feedforward_layernorm", f"{theirs}pre_feedforward_layernorm", model),
        *gated_mlp(f"{ours}mlp", f"{theirs}mlp", model),
        *norm(f"{ours}post_feedforward_layernorm", f"{theirs}post_feedforward_layernorm", model),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `GemmaConfig`; it knows Gemma 2 by its architecture."""
    return {"inter_layernorms": True}


FAMILY = Family(read_config, tensors, extra_config, ignored, cuts_embedding=True)
