"""GPT-NeoX, Pythia: heads rotated in part, attention and MLP side by side, each with its norm."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder, unmet
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    Names,
    decoder,
    fused_attention,
    ignored,
    norm,
    plain_mlp,
    sort_groups,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

NORM = "post_attention_layernorm"
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576,
    "num_hidden_layers": 44, "num_attention_heads": 64, "hidden_act": "gelu",
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "rotary_emb_base": 10000.0,
    "rotary_pct": 0.25, "use_parallel_residual": True, "attention_bias": True,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF GPT-NeoX config."""
    architecture = "GPTNeoXForCausalLM"
    model = rms_decoder(hf, dtype, architecture, epsilon="layer_norm_eps", partial=True)
    bias, side_by_side = hf.flag("attention_bias"), hf.flag("use_parallel_residual")
    return replace(
        model,
        hidden_act=require_act(hf, "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        upstream_limits=model.upstream_limits
        + unmet(
            epsilon=model.norm_epsilon != 1e-5,
            inner=model.intermediate_size != 4 * model.hidden_size,
            in_turn=not side_by_side,
            no_bias=not bias,
            scaling=model.rotary_scaling is not None,
        ),
        attn_bias=bias,
        mlp_bias=True,
        arithmetic=Arithmetic(
            layer_norm=True,
            gated_mlp=False,
            dense_bias=bias,
            residual="parallel" if side_by_side else "sequential",
            mlp_norm=NORM,
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    names = Names("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", "embed_out")
    return decoder(model, _layer, names)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    qkv, sort = ("query_key_value", "dense"), sort_groups(model)
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *fused_attention(f"{ours}attention", f"{theirs}attention", model, qkv, sort),
        *norm(f"{ours}{NORM}", f"{theirs}{NORM}", model),
        *plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, "dense_h_to_4h", "dense_4h_to_h"),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that upstream's GPT-NeoX model reads in addition to the common ones."""
    share = model.rotary_dim / model.head_size
    return {"rotary_pct": share, "rotary_emb_base": model.rotary_base}


def may_be_left_out(name: str, model: ModelConfig) -> bool:
    """Tell whether a source tensor may be left out: buffers of masks and angles, a tied head."""
    buffers = ("attention.bias", "attention.masked_bias")
    tied_head = model.tie_word_embeddings and name == "embed_out.weight"
    return tied_head or name.endswith(buffers) or ignored(name, model)


FAMILY = Family(
    read_config, tensors, extra_config, may_be_left_out, DEFAULTS, base_prefix="gpt_neox."
)
