"""StarCoder2: rotary positions with LayerNorm, biases and a plain MLP; upstream's `GPTConfig`."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.gpt2 import gpt_keys
from specpipe.checkpoint.families.hf import all_layers, layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.parts import attention, decoder, ignored, norm, plain_mlp
from specpipe.core.model import Arithmetic, Dtype, ModelConfig


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF StarCoder2 config."""
    bias = bool(hf.get("use_bias", True))
    return replace(
        rms_decoder({"tie_word_embeddings": True, **hf}, dtype, "Starcoder2ForCausalLM"),
        hidden_act=require_act(hf, "gelu_pytorch_tanh", "gelu", "gelu_new"),
        norm_epsilon=float(hf.get("norm_epsilon", 1e-5)),
        attn_bias=bias,
        mlp_bias=bias,
        arithmetic=Arithmetic(
            layer_norm=True,
            gated_mlp=False,
            dense_bias=bias,
            sliding_windows=layer_windows(hf, all_layers),
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, "c_fc", "c_proj"),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `GPTConfig`."""
    return gpt_keys("starcoder2", bias=model.attn_bias)


FAMILY = Family(read_config, tensors, extra_config, ignored)
