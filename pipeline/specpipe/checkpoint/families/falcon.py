"""Falcon 7B, 40B, 180B, 11B and RW: three layouts of query, key and value, three of norms.

7B has one KV head and one norm; 40B and 180B group their heads and norm twice; 11B groups them and
norms once; RW has ALiBi, a KV head for every head, and attention before the MLP.
"""

from typing import Any, Literal

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import group_heads, require_act, share_heads, unmet
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
from specpipe.checkpoint.families.rope import read_rope, rotated
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
    "layer_norm_epsilon": 1e-5, "multi_query": True, "parallel_attn": True,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "activation": "gelu",
    "tie_word_embeddings": True,
}  # fmt: skip
ALIASES = {  # the keys of the first releases (RefinedWeb)
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "num_kv_heads": "n_head_kv", "hidden_size": "n_embed",
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts."""
    hidden, bias, alibi = hf.whole("hidden_size"), hf.flag("bias"), hf.flag("alibi")
    heads, head_size = share_heads(hf, "num_attention_heads")
    longest = hf.whole("max_position_embeddings")
    rope = read_rope(hf, longest=longest)
    if not alibi:
        rotated(hf, head_size, 1.0)
    return ModelConfig(
        architecture="FalconForCausalLM",
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=hf.layers("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(hf, heads),
        head_size=head_size,
        intermediate_size=hf.maybe_whole("ffn_hidden_size") or 4 * hidden,
        vocab_size=hf.whole("vocab_size"),
        max_position_embeddings=max(longest, rope.reach),
        norm_epsilon=hf.number("layer_norm_epsilon"),
        rotary_base=rope.base,
        rotary_scaling=rope.scaling,
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
        hidden_act=require_act(hf, "gelu", "gelu_new", "gelu_pytorch_tanh", key="activation"),
        position_embedding_type="alibi_with_scale" if alibi else "rope_gpt_neox",
        attn_bias=bias,
        mlp_bias=bias,
        arithmetic=_arithmetic(hf, bias),
        upstream_limits=unmet(scaling=rope.scaling is not None),
    )


def _kv_heads(hf: Keys, heads: int) -> int:
    if _grouped(hf):
        return group_heads(hf, heads, "num_kv_heads")
    return 1 if hf.flag("multi_query") else heads


def _grouped(hf: Keys) -> bool:
    return hf.flag("new_decoder_architecture") or hf.values.get("model_type") == "RefinedWeb"


def _arithmetic(hf: Keys, bias: bool) -> Arithmetic:
    side_by_side = _grouped(hf) or hf.flag("parallel_attn")
    two_norms = _grouped(hf) and hf.maybe_whole("num_ln_in_parallel_attn") in (None, 2)
    residual: Literal["sequential", "parallel", "parallel_one_norm"] = "sequential"
    if side_by_side:
        residual = "parallel" if two_norms else "parallel_one_norm"
    return Arithmetic(
        layer_norm=True,
        gated_mlp=False,
        dense_bias=bias,
        residual=residual,
        mlp_norm="mlp_layernorm" if two_norms else "post_layernorm",
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    names = Names("transformer.word_embeddings", "transformer.h", "transformer.ln_f")
    return decoder(model, _layer, names)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    # One group is stored in the order that upstream wants: all queries, the key, the value.
    sort = sort_groups(model) if model.num_key_value_heads > 1 else None
    qkv, mlp = ("query_key_value", "dense"), ("dense_h_to_4h", "dense_4h_to_h")
    return [
        *_norms(model, ours, theirs),
        *fused_attention(f"{ours}attention", f"{theirs}self_attention", model, qkv, sort),
        *plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, *mlp),
    ]


def _norms(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    names = {
        "sequential": (("input_layernorm",) * 2, ("post_layernorm", "post_attention_layernorm")),
        "parallel_one_norm": (("input_layernorm",) * 2,),
        "parallel": (("input_layernorm", "ln_attn"), ("mlp_layernorm", "ln_mlp")),
    }
    pairs = names[model.arithmetic.residual]
    return [p for our, their in pairs for p in norm(f"{ours}{our}", f"{theirs}{their}", model)]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `FalconConfig`."""
    grouped = 1 < model.num_key_value_heads < model.num_attention_heads
    residual = model.arithmetic.residual
    norms = {"parallel": 2, "parallel_one_norm": 1}.get(residual)
    return {
        "bias": model.attn_bias,
        "parallel_attention": residual != "sequential",
        "new_decoder_architecture": grouped or residual == "parallel",
        "num_ln_in_parallel_attn": norms,
    }


FAMILY = Family(
    read_config, tensors, extra_config, ignored, DEFAULTS, ALIASES, base_prefix="transformer."
)
