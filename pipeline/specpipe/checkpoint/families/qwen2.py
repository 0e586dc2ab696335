"""Qwen2 and Qwen2.5: Llama with biases of query, key and value."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig
from specpipe.checkpoint.families.hf import layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; the window counts only if `use_sliding_window` is true."""
    require_act(hf, "silu")
    return replace(
        rms_decoder(hf, dtype, "Qwen2ForCausalLM"),
        attn_bias=True,
        arithmetic=Arithmetic(sliding_windows=windows(hf)),
    )


def windows(hf: HfConfig) -> tuple[int, ...]:
    """Return the sliding windows of Qwen's layers: those from `max_window_layers` on slide."""
    if not hf.get("use_sliding_window"):
        return ()
    return layer_windows(hf, lambda i: i >= hf.get("max_window_layers", 28))


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


FAMILY = Family(read_config, tensors, extra_config, ignored)
