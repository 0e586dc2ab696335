"""Gemma 2: Gemma with more norms, with soft caps, and with a window in every other layer.

Upstream's `post_layernorm` is the norm behind attention.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.gemma import ACT, add_one, gemma_facts
from specpipe.checkpoint.families.hf import layer_windows, require_act
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import attention, decoder, gated_mlp, ignored, norm
from specpipe.core.model import Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "hidden_activation": ACT, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; without `layer_types`, layers 0, 2, 4 ... slide."""
    require_act(hf, ACT, key="hidden_activation")
    model = gemma_facts(hf, dtype, "Gemma2ForCausalLM")
    windows = layer_windows(hf, model, lambda layer: layer % 2 == 0)
    return replace(
        model,
        query_pre_attn_scalar=hf.number("query_pre_attn_scalar", above=0),
        attn_logit_softcapping=hf.maybe_number("attn_logit_softcapping", above=0),
        final_logit_softcapping=hf.maybe_number("final_logit_softcapping", above=0),
        arithmetic=replace(
            model.arithmetic,
            post_norms=True,
            mlp_norm="pre_feedforward_layernorm",
            sliding_windows=windows,
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return add_one(decoder(model, layer))


def layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    """Plan a layer; queries and keys are normed if the model norms them."""
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


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS, cuts_embedding=True)
