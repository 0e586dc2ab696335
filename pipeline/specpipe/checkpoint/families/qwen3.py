"""Qwen3: Llama whose query and key heads are normed before they are rotated."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.checkpoint.families.qwen2 import DEFAULTS as QWEN2
from specpipe.checkpoint.families.qwen2 import qwen_keys, windows
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {**QWEN2, "head_dim": 128}


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts."""
    model = normed_facts(hf, dtype, "Qwen3ForCausalLM")
    return replace(model, arithmetic=Arithmetic(sliding_windows=windows(hf, model)))


def normed_facts(hf: Keys, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return what all Qwen3 have in common.

    Raises Unsupported for biases, which no Qwen3 and no upstream class has.
    """
    require_act(hf, "silu")
    if hf.flag("attention_bias"):
        raise hf.unsupported("has attention_bias: true; Qwen3 has no biases upstream")
    model = rms_decoder(hf, dtype, architecture)
    return replace(model, qk_layernorm=True, upstream_since=(1, 0))


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `QWenConfig`, which knows Qwen3 by its type."""
    return qwen_keys("qwen3")


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
