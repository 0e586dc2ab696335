"""Llama 1 to 3.2, SmolLM2, TinyLlama, Vicuna: RMSNorm, rotary positions, gated SiLU MLP, GQA.

Names and shapes follow upstream's `LLaMAForCausalLM`. Mind the crossed names: TensorRT-LLM's `fc`
is HF's `gate_proj`, its `gate` is HF's `up_proj`.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder
from specpipe.checkpoint.families.parts import decoder, ignored, llama_layer
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the canonical facts of an HF Llama config.

    Raises Unsupported for other activations and unknown rope scaling, ConfigError for a missing
    key or head counts that do not divide.
    """
    require_act(hf, "silu")
    bias = bool(hf.get("attention_bias", False))
    return replace(
        rms_decoder(hf, dtype, "LlamaForCausalLM"),
        attn_bias=bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        arithmetic=Arithmetic(dense_bias=bias),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, llama_layer)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that upstream's `LLaMAConfig` reads in addition to the model's facts."""
    return {"residual_mlp": False, "disable_weight_only_quant_plugin": False}


FAMILY = Family(read_config, tensors, extra_config, ignored)
