"""Llama 2 and 3, SmolLM2, TinyLlama, Vicuna: RMSNorm, rotary positions, gated SiLU MLP, GQA.

Names and shapes follow upstream's `LLaMAForCausalLM`. Mind the crossed names: TensorRT-LLM's `fc`
is HF's `gate_proj`, its `gate` is HF's `up_proj`.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.parts import (
    attention,
    embedding,
    gated_mlp,
    head,
    in_layer,
    last,
    norm,
)
from specpipe.contracts import Dtype, ModelConfig
from specpipe.errors import Unsupported
from specpipe.model import Arithmetic


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the canonical facts of an HF Llama config.

    Raises Unsupported for other activations and unknown rope scaling, ConfigError for a missing
    key or head counts that do not divide.
    """
    require_act(hf, "silu")
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise Unsupported(f"config.json has {key}: true; the CPU engine has no biases yet")
    bias = bool(hf.get("attention_bias", False))
    return replace(
        rms_decoder(hf, dtype, "LlamaForCausalLM"),
        attn_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        arithmetic=Arithmetic(dense_bias=bias),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    plans = [embedding("model.embed_tokens.weight", model)]
    for i in range(model.num_hidden_layers):
        plans += in_layer(i, _layer(model, f"transformer.layers.{i}.", f"model.layers.{i}."))
    plans += last(norm("transformer.ln_f", "model.norm", model.hidden_size))
    return plans + head("lm_head", "model.embed_tokens", model)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    hidden = model.hidden_size
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", hidden),
        *attention(f"{ours}attention", f"{theirs}self_attn", model, projections),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", hidden),
        *gated_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that upstream's `LLaMAConfig` reads beside the model's facts."""
    return {"residual_mlp": False, "disable_weight_only_quant_plugin": False}


def ignored(name: str, model: ModelConfig) -> bool:
    """Tell whether a source tensor may be left out: rotary buffers, and the copy of a tied head."""
    tied_head = model.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith("rotary_emb.inv_freq")


FAMILY = Family(read_config, tensors, extra_config, ignored)
