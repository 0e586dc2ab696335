"""StarCoder2: rotary positions with LayerNorm, biases and a plain MLP; upstream's `GPTConfig`."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.gpt2 import gpt_keys
from specpipe.checkpoint.families.hf import layer_windows, require_act, rms_decoder
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import attention, decoder, ignored, norm, plain_mlp
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288,
    "num_hidden_layers": 30, "num_attention_heads": 24, "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh", "max_position_embeddings": 4096, "norm_epsilon": 1e-5,
    "rope_theta": 10000.0, "use_bias": True, "tie_word_embeddings": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF StarCoder2 config."""
    bias = hf.flag("use_bias")
    model = rms_decoder(hf, dtype, "Starcoder2ForCausalLM", epsilon="norm_epsilon")
    return replace(
        model,
        hidden_act=require_act(hf, "gelu_pytorch_tanh", "gelu", "gelu_new"),
        attn_bias=bias,
        mlp_bias=bias,
        arithmetic=Arithmetic(
            layer_norm=True,
            gated_mlp=False,
            dense_bias=bias,
            sliding_windows=layer_windows(hf, model),
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


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS)
