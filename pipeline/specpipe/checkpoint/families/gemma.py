"""Gemma: norms that scale with 1 + w, wide heads, embeddings scaled by the root of their size.

As upstream's converter, ours adds the 1 to the weights, in float32.
"""

import math
from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import decoder, ignored, llama_layer, plus_one
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

ACT = "gelu_pytorch_tanh"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
    "head_dim": 256, "hidden_act": ACT, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; a `hidden_act` of gelu, in the first releases, means the same as tanh."""
    key = "hidden_activation" if hf.has("hidden_activation") else "hidden_act"
    require_act(hf, ACT, "gelu", key=key)
    return gemma_facts(hf, dtype, "GemmaForCausalLM")


def gemma_facts(hf: Keys, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return what Gemma 1 and 2 have in common; raises Unsupported for biases."""
    if hf.flag("attention_bias"):
        raise hf.unsupported("has attention_bias: true; no Gemma has biases")
    model = rms_decoder(hf, dtype, architecture)
    scale = math.sqrt(model.hidden_size)
    return replace(model, hidden_act=ACT, arithmetic=Arithmetic(embedding_scale=scale))


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return add_one(decoder(model, llama_layer))


def add_one(plans: list[TensorPlan]) -> list[TensorPlan]:
    """Add the 1 to the weights of the norms."""
    ends = ("layernorm.weight", "ln_f.weight")
    return [replace(p, join=plus_one) if p.name.endswith(ends) else p for p in plans]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `GemmaConfig`."""
    return {"inter_layernorms": False}


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS, cuts_embedding=True)
