"""Command R and R+: one LayerNorm without bias for attention and MLP, logits with a scale.

Neighbouring values of a head are rotated together, as in GPT-J.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.hf import require_act, rms_decoder, unmet
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import attention, decoder, gated_mlp, ignored, norm
from specpipe.core.model import Arithmetic, Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625,
    "num_hidden_layers": 40, "num_attention_heads": 64, "hidden_act": "silu",
    "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}  # fmt: skip
_BASE = "rope_theta"


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; raises Unsupported without a base of the rotary positions.

    transformers 4 and 5 take different ones then.
    """
    tables = (hf, hf.table("rope_parameters"), hf.table("rope_scaling"))
    if not any(keys.given(_BASE) for keys in tables):
        raise hf.unsupported(
            f"has no {_BASE}, nor rope_parameters with one; transformers 4 and 5 differ in the "
            "base that they take then",
            hint=f"add the {_BASE} with which the model was trained",
        )
    model = cohere_facts(hf, dtype, "CohereForCausalLM")
    return replace(
        model,
        qk_layernorm=hf.flag("use_qk_norm"),
        upstream_limits=model.upstream_limits + unmet(scaling=model.rotary_scaling is not None),
        arithmetic=replace(model.arithmetic, qk_norm="own_heads"),
    )


def cohere_facts(hf: Keys, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return what all Command models have in common; `attention_bias` is of all projections."""
    require_act(hf, "silu")
    bias = hf.flag("attention_bias")
    return replace(
        rms_decoder(hf, dtype, architecture, epsilon="layer_norm_eps"),
        position_embedding_type="rope_gptj",
        attn_bias=bias,
        arithmetic=Arithmetic(
            layer_norm=True,
            norm_bias=False,
            dense_bias=bias,
            residual="parallel_one_norm",
            logit_scale=hf.number("logit_scale", above=0),
        ),
    )


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return decoder(model, _layer)


def _layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *gated_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `CohereConfig`."""
    return {"output_multiplier_scale": model.arithmetic.logit_scale}


FAMILY = Family(read_config, tensors, extra_config, ignored, DEFAULTS, cuts_embedding=True)
