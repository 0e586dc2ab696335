"""Mistral 7B, Nemo, Small: Llama with a sliding window in its first release."""

from dataclasses import replace

from specpipe.checkpoint.families import Family, HfConfig
from specpipe.checkpoint.families.hf import all_layers, layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.llama import extra_config, tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; a config without `sliding_window` has transformers' default of 4096."""
    require_act(hf, "silu")
    windows = layer_windows({"sliding_window": 4096, **hf}, all_layers)
    return replace(
        rms_decoder(hf, dtype, "MistralForCausalLM"),
        arithmetic=Arithmetic(sliding_windows=windows),
    )


FAMILY = Family(read_config, tensors, extra_config, ignored)
