"""GLM-4-0414: GLM whose attention's and MLP's outputs are normed too."""

from dataclasses import replace

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.glm import DEFAULTS, glm_facts
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    attention,
    decoder,
    fused_mlp,
    ignored,
    no_keys,
    norm,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

BEFORE_MLP = "pre_feedforward_layernorm"


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF GLM-4 config."""
    how = Arithmetic(post_norms=True, mlp_norm=BEFORE_MLP)
    return replace(glm_facts(hf, dtype, "Glm4ForCausalLM"), arithmetic=how)


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_self_attn_layernorm", model),
        *norm(f"{ours}{BEFORE_MLP}", f"{theirs}post_attention_layernorm", model),
        *fused_mlp(f"{ours}mlp", f"{theirs}mlp", model),
        *norm(f"{ours}post_feedforward_layernorm", f"{theirs}post_mlp_layernorm", model),
    ]


FAMILY = Family(read_config, tensors, no_keys, ignored, DEFAULTS)
