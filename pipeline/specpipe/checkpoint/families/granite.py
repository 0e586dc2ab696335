"""Granite 3 and 4 dense: Llama with four multipliers; upstream builds it of `LLaMAConfig`."""

import math
from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import DEFAULTS as LLAMA
from specpipe.checkpoint.families.llama import extra_config as llama_keys
from specpipe.checkpoint.families.llama import read_config as read_llama
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored
from specpipe.core.model import Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    **LLAMA, "embedding_multiplier": 1.0, "attention_multiplier": 1.0, "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}  # fmt: skip

SINCE = (0, 19)  # inferred: the sources of 0.17 lack the multipliers, undated later ones have them


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; `attention_multiplier` is the scale of scores, `logits_scaling` divides."""
    model = read_llama(hf, dtype)
    return replace(
        model,
        architecture="GraniteForCausalLM",
        query_pre_attn_scalar=hf.number("attention_multiplier", above=0) ** -2,
        upstream_since=max(model.upstream_since or SINCE, SINCE),
        arithmetic=replace(
            model.arithmetic,
            embedding_scale=hf.number("embedding_multiplier", above=0),
            residual_scale=hf.number("residual_multiplier", above=0),
            logit_scale=1 / hf.number("logits_scaling", above=0),
        ),
    )


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of `LLaMAConfig`; its multiplier of attention is one of 1 / sqrt(head)."""
    how = model.arithmetic
    return {
        **llama_keys(model),
        "embedding_multiplier": how.embedding_scale,
        "attention_multiplier": model.attention_scale * math.sqrt(model.head_size),
        "residual_multiplier": how.residual_scale,
        "output_multiplier_scale": how.logit_scale,
    }


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
