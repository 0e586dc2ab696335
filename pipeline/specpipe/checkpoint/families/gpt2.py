"""GPT-2: learned positions, LayerNorm, biases everywhere; HF stores matrices as [in, out]."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, Shard, TensorPlan
from specpipe.checkpoint.families.hf import require_act, share_heads
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import (
    Names,
    copy,
    decoder,
    fused_attention,
    ignored,
    norm,
    plain_mlp,
    transposed,
)
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "tie_word_embeddings": True,
}  # fmt: skip
ALIASES = {
    "n_embd": "hidden_size", "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads", "n_layer": "num_hidden_layers",
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported for attention that is scaled in another way."""
    if not hf.flag("scale_attn_weights") or hf.flag("scale_attn_by_inverse_layer_idx"):
        raise hf.unsupported(
            "changes how attention is scaled (scale_attn_weights, "
            "scale_attn_by_inverse_layer_idx); GPT-2 divides by the root"
        )
    hidden = hf.whole("n_embd")
    heads, head_size = share_heads(hf, "n_head", "n_embd")
    return ModelConfig(
        architecture="GPT2LMHeadModel",
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=hf.layers("n_layer"),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_size=head_size,
        intermediate_size=hf.maybe_whole("n_inner") or 4 * hidden,
        vocab_size=hf.whole("vocab_size"),
        max_position_embeddings=hf.whole("n_positions"),
        norm_epsilon=hf.number("layer_norm_epsilon"),
        rotary_base=10000.0,
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
        hidden_act=require_act(
            hf, "gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh", key="activation_function"
        ),
        position_embedding_type="learned_absolute",
        attn_bias=True,
        mlp_bias=True,
        arithmetic=Arithmetic(layer_norm=True, gated_mlp=False, dense_bias=True),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    names = Names("transformer.wte", "transformer.h", "transformer.ln_f")
    first, *rest = decoder(model, _layer, names)
    positions = copy(
        "transformer.position_embedding.weight",
        "transformer.wpe.weight",
        model.max_position_embeddings,
        model.hidden_size,
        shard=Shard.EMBEDDING,  # a parallel embedding cuts every table, in upstream's loader too
    )
    return [first, positions, *rest]


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    projections = ("c_attn", "c_proj")
    attention = fused_attention(f"{ours}attention", f"{theirs}attn", model, projections, None)
    mlp = plain_mlp(f"{ours}mlp", f"{theirs}mlp", model, "c_fc", "c_proj")
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}ln_1", model),
        *map(_transposed, attention),
        *norm(f"{ours}post_layernorm", f"{theirs}ln_2", model),
        *map(_transposed, mlp),
    ]


def _transposed(plan: TensorPlan) -> TensorPlan:
    """Read a matrix as HF's `Conv1D` has it; leave a bias as it is."""
    if len(plan.shape) == 1:
        return plan
    return replace(plan, source_shapes=(plan.shape[::-1],), join=transposed)


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `GPTConfig`."""
    return gpt_keys("gpt2", bias=True)


def gpt_keys(variant: str, *, bias: bool) -> dict[str, Any]:
    """Return the keys that upstream's `GPTConfig` reads in addition to the model's facts."""
    return {
        "gpt_variant": variant,
        "bias": bias,
        "q_scaling": 1.0,
        "embedding_scale": None,
        "apply_query_key_layer_scaling": False,
        "rotary_pct": 1.0,
        "inner_layernorm": False,
        "norm_before_bmm1": False,
    }


FAMILY = Family(
    read_config, tensors, extra_config, ignored, DEFAULTS, ALIASES, base_prefix="transformer."
)
