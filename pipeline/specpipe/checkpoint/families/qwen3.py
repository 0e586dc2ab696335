"""Qwen3: Llama whose query and key heads are normed before they are rotated."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.checkpoint.families.qwen2 import qwen_keys, windows
from specpipe.core.errors import Unsupported
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported for biases, which no Qwen3 and no upstream class has."""
    require_act(hf, "silu")
    if hf.get("attention_bias"):
        raise Unsupported("config.json has attention_bias: true; Qwen3 has no biases upstream")
    return replace(
        rms_decoder({"head_dim": 128, **hf}, dtype, "Qwen3ForCausalLM"),
        qk_layernorm=True,
        upstream_since=(0, 20),
        arithmetic=Arithmetic(sliding_windows=windows(hf)),
    )


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `QWenConfig`, which knows Qwen3 by its type."""
    return qwen_keys("qwen3")


FAMILY = Family(read_config, tensors, extra_config, ignored)
