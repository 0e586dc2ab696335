"""Llama 2 and 3, SmolLM2, TinyLlama, Vicuna: RMSNorm, rotary positions, gated SiLU MLP, GQA.

Names and shapes follow upstream's `LLaMAForCausalLM`. Mind the crossed names: TensorRT-LLM's `fc`
is HF's `gate_proj`, its `gate` is HF's `up_proj`.
"""

from typing import Any

from specpipe.checkpoint.families import Family, HfConfig, TensorPlan
from specpipe.contracts import Dtype, ModelConfig
from specpipe.errors import ConfigError, Unsupported

ROPE_TYPES = ("default", "linear", "llama3")


def read_config(hf: HfConfig, dtype: Dtype) -> ModelConfig:
    """Return the canonical facts of an HF Llama config.

    Raises Unsupported for biases, other activations and unknown rope scaling, ConfigError for a
    missing key or head counts that do not divide.
    """
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key):
            raise Unsupported(f"config.json has {key}: true; the Llama converter has no biases yet")
    if hf.get("hidden_act", "silu") != "silu":
        raise Unsupported(f"config.json has hidden_act {hf['hidden_act']!r}; Llama needs 'silu'")
    theta, scaling = _rope(hf)
    heads = _need(hf, "num_attention_heads")
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ConfigError(f"config.json: {heads} heads do not divide by {kv_heads} KV heads")
    return ModelConfig(
        architecture="LlamaForCausalLM",
        dtype=dtype,
        hidden_size=_need(hf, "hidden_size"),
        num_hidden_layers=_need(hf, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=hf.get("head_dim") or _need(hf, "hidden_size") // heads,
        intermediate_size=_need(hf, "intermediate_size"),
        vocab_size=_need(hf, "vocab_size"),
        max_position_embeddings=_need(hf, "max_position_embeddings"),
        norm_epsilon=float(hf.get("rms_norm_eps", 1e-6)),
        rotary_base=theta,
        rotary_scaling=scaling,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )


def _need(hf: HfConfig, key: str) -> int:
    value = hf.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"config.json: '{key}' is {value!r}: must be a positive whole number")
    return value


def _rope(hf: HfConfig) -> tuple[float, dict[str, Any] | None]:
    """Return the base and HF's whole `rope_scaling` (None if plain).

    transformers 5 writes both into `rope_parameters`, older releases write `rope_theta` and
    `rope_scaling`, with `type` before `rope_type`.
    """
    new = dict(hf.get("rope_parameters") or {})
    theta = float(new.pop("rope_theta", hf.get("rope_theta", 10000.0)))
    scaling = new or dict(hf.get("rope_scaling") or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise Unsupported(
            f"config.json has rope scaling of type {kind!r}", hint=f"known: {', '.join(ROPE_TYPES)}"
        )
    return theta, None if kind == "default" else {**scaling, "rope_type": kind}


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a one-rank checkpoint, in the order in which it is written."""
    hidden, vocab = model.hidden_size, model.vocab_size
    plans = [
        _copy("transformer.vocab_embedding.weight", "model.embed_tokens.weight", vocab, hidden)
    ]
    for i in range(model.num_hidden_layers):
        plans += _layer(model, i)
    plans.append(_copy("transformer.ln_f.weight", "model.norm.weight", hidden))
    head = "model.embed_tokens.weight" if model.tie_word_embeddings else "lm_head.weight"
    return [*plans, _copy("lm_head.weight", head, vocab, hidden)]


def _layer(model: ModelConfig, i: int) -> list[TensorPlan]:
    ours, theirs = f"transformer.layers.{i}.", f"model.layers.{i}."
    hidden, inner = model.hidden_size, model.intermediate_size
    query = model.num_attention_heads * model.head_size
    key = model.num_key_value_heads * model.head_size
    qkv = TensorPlan(
        f"{ours}attention.qkv.weight",
        (query + 2 * key, hidden),
        tuple(f"{theirs}self_attn.{n}_proj.weight" for n in "qkv"),
        ((query, hidden), (key, hidden), (key, hidden)),
    )
    return [
        _copy(f"{ours}input_layernorm.weight", f"{theirs}input_layernorm.weight", hidden),
        qkv,
        _copy(f"{ours}attention.dense.weight", f"{theirs}self_attn.o_proj.weight", hidden, query),
        _copy(f"{ours}post_layernorm.weight", f"{theirs}post_attention_layernorm.weight", hidden),
        _copy(f"{ours}mlp.fc.weight", f"{theirs}mlp.gate_proj.weight", inner, hidden),
        _copy(f"{ours}mlp.gate.weight", f"{theirs}mlp.up_proj.weight", inner, hidden),
        _copy(f"{ours}mlp.proj.weight", f"{theirs}mlp.down_proj.weight", hidden, inner),
    ]


def _copy(name: str, source: str, *shape: int) -> TensorPlan:
    return TensorPlan(name, shape, (source,), (shape,))


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys that upstream's `LLaMAConfig` reads beside the common ones."""
    return {
        "position_embedding_type": "rope_gpt_neox",
        "attn_bias": False,
        "mlp_bias": False,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
    }


def ignored(name: str, model: ModelConfig) -> bool:
    """Tell whether a source tensor may be left out: rotary buffers, and the copy of a tied head."""
    tied_head = model.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith("rotary_emb.inv_freq")


FAMILY = Family(read_config, tensors, extra_config, ignored)
