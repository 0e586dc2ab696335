"""Falcon 7B, 40B, 180B, 11B and RW: three layouts of query, key and value, three of norms.

7B has one KV head and one norm; 40B and 180B group their heads and norm twice; 11B groups them and
norms once; RW has ALiBi, a KV head for every head, and attention before the MLP.
"""

from typing import Any, Literal

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.checkpoint.families.hf import need, require_act, rope, share_heads, unmet
from specpipe.checkpoint.families.parts import (
    Names,
    decoder,
    fused_attention,
    ignored,
    norm,
    plain_mlp,
    sort_groups,
)
from specpipe.core.errors import Unsupported
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

OLD_KEYS = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the facts; knows the keys of the first releases (RefinedWeb) too.

    Raises Unsupported for a head that is not the embedding: no Falcon has one.
    """
    hf = {**hf, **{new: hf[old] for new, old in OLD_KEYS.items() if old in hf}}
    hidden, bias = need(hf, "hidden_size"), bool(hf.get("bias", False))
    heads, head_size = share_heads(hf, "num_attention_heads", hidden)
    base, scaling = rope(hf)
    return ModelConfig(
        architecture="FalconForCausalLM",
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=need(hf, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_kv_heads(hf, heads),
        head_size=head_size,
        intermediate_size=hf.get("ffn_hidden_size") or 4 * hidden,
        vocab_size=need(hf, "vocab_size"),
        max_position_embeddings=hf.get("max_position_embeddings", 2048),
        norm_epsilon=float(hf.get("layer_norm_epsilon", 1e-5)),
        rotary_base=base,
        rotary_scaling=scaling,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", True)),
        hidden_act=require_act(hf, "gelu", "gelu_new", "gelu_pytorch_tanh", key="activation"),
        position_embedding_type="alibi_with_scale" if hf.get("alibi") else "rope_gpt_neox",
        attn_bias=bias,
        mlp_bias=bias,
        arithmetic=_arithmetic(hf, bias),
        upstream_limits=unmet(scaling=scaling is not None),
    )


def _kv_heads(hf: HfConfig, heads: int) -> int:
    if _grouped(hf):
        count = int(hf.get("num_kv_heads") or hf.get("n_head_kv") or heads)
        if heads % count:
            raise Unsupported(f"config.json: {heads} heads do not divide by {count} KV heads")
        return count
    return 1 if hf.get("multi_query", True) else heads


def _grouped(hf: HfConfig) -> bool:
    return bool(hf.get("new_decoder_architecture")) or hf.get("model_type") == "RefinedWeb"


def _arithmetic(hf: HfConfig, bias: bool) -> Arithmetic:
    side_by_side = _grouped(hf) or hf.get("parallel_attn", True)
    two_norms = _grouped(hf) and hf.get("num_ln_in_parallel_attn") in (None, 2)
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


FAMILY = Family(read_config, tensors, extra_config, ignored, base_prefix="transformer.")
