"""Llama 1 to 3.2, SmolLM2, TinyLlama, Vicuna: RMSNorm, rotary positions, gated SiLU MLP, GQA.

Names and shapes follow upstream's `LLaMAForCausalLM`. Mind the crossed names: TensorRT-LLM's `fc`
is HF's `gate_proj`, its `gate` is HF's `up_proj`.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import decoder, ignored, llama_layer
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {  # of transformers' config class, as in every family
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the canonical facts of an HF Llama config.

    Raises Unsupported for other activations and unknown rope scaling, ConfigError for a wrong
    value or head counts that do not divide.
    """
    require_act(hf, "silu")
    bias = hf.flag("attention_bias")
    return replace(
        rms_decoder(hf, dtype, "LlamaForCausalLM"),
        attn_bias=bias,
        mlp_bias=hf.flag("mlp_bias"),
        arithmetic=Arithmetic(dense_bias=bias),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, llama_layer)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that upstream's `LLaMAConfig` reads in addition to the model's facts."""
    return {"residual_mlp": False, "disable_weight_only_quant_plugin": False}


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
