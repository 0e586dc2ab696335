"""GPT-NeoX, Pythia: heads rotated in part, attention and MLP side by side, each with its norm."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder, rotary_width, unmet
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


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts of an HF GPT-NeoX config."""
    model = rms_decoder(hf, dtype, "GPTNeoXForCausalLM")
    bias = bool(hf.get("attention_bias", True))
    side_by_side = bool(hf.get("use_parallel_residual", True))
    return replace(
        model,
        hidden_act=require_act(hf, "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
        norm_epsilon=float(hf.get("layer_norm_eps", 1e-5)),
        rotary_embedding_dim=rotary_width(hf, model.head_size, 0.25),
        upstream_limits=unmet(
            epsilon=hf.get("layer_norm_eps", 1e-5) != 1e-5,
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


FAMILY = Family(read_config, tensors, extra_config, may_be_left_out, base_prefix="gpt_neox.")
