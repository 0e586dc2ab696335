"""Qwen2 and Qwen2.5: Llama with biases of query, key and value."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.hf import layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; the window counts only if `use_sliding_window` is true."""
    require_act(hf, "silu")
    model = rms_decoder(hf, dtype, "Qwen2ForCausalLM")
    how = Arithmetic(sliding_windows=windows(hf, model))
    return replace(model, attn_bias=True, arithmetic=how)


def windows(hf: Keys, model: ModelConfig) -> tuple[int, ...]:
    """Return the sliding windows of Qwen's layers: those from `max_window_layers` on slide."""
    first = hf.whole("max_window_layers", least=0)
    found = layer_windows(hf, model, lambda layer: layer >= first)
    return found if hf.flag("use_sliding_window") else ()


def qwen_keys(kind: str) -> dict[str, Any]:
    """Return the keys that upstream's `QWenConfig` reads in addition to the model's facts."""
    return {
        "qwen_type": kind,
        "seq_length": 8192,  # read even where logn attention, its one use, is off
        "use_logn_attn": False,
        "num_labels": 1,
        "disable_weight_only_quant_plugin": False,
    }


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of `QWenConfig` for Qwen2."""
    return qwen_keys("qwen2")


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
