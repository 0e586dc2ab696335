"""Phi-1, 1.5 and 2: LayerNorm, heads rotated in part, attention and MLP side by side."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder, rotary_width, unmet
from specpipe.checkpoint.families.parts import (
    Names,
    attention,
    decoder,
    ignored,
    norm,
    plain_mlp,
)
from specpipe.core.errors import Unsupported
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

GELU = ("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh")


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported for normed queries, which no released Phi has."""
    if hf.get("qk_layernorm"):
        raise Unsupported("config.json has qk_layernorm: true; no released Phi has it")
    model = rms_decoder(hf, dtype, "PhiForCausalLM")
    return replace(
        model,
        hidden_act=require_act(hf, *GELU),
        norm_epsilon=float(hf.get("layer_norm_eps", 1e-5)),
        rotary_embedding_dim=rotary_width(hf, model.head_size, 0.5),
        upstream_limits=unmet(
            groups=model.num_key_value_heads != model.num_attention_heads,
            epsilon=hf.get("layer_norm_eps", 1e-5) != 1e-5,
        ),
        attn_bias=True,
        mlp_bias=True,
        arithmetic=Arithmetic(
            layer_norm=True,
            gated_mlp=False,
            dense_bias=True,
            head_bias=True,
            residual="parallel_one_norm",
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer, Names(norm="model.final_layernorm"))


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model, "dense"),
        *plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, "fc1", "fc2"),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `PhiConfig`."""
    return {"rotary_pct": model.rotary_dim / model.head_size}


FAMILY = Family(read_config, tensors, extra_config, ignored)
