"""Mistral 7B, Nemo, Small: Llama with a sliding window in its first release."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.hf import layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import extra_config, tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "sliding_window": 4096,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; a config without `sliding_window` has a window, one with null has none."""
    require_act(hf, "silu")
    model = rms_decoder(hf, dtype, "MistralForCausalLM")
    return replace(model, arithmetic=Arithmetic(sliding_windows=layer_windows(hf, model)))


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
