"""Reading Hugging Face's config.json: what most architectures spell alike."""

from typing import Any

from specpipe.checkpoint.families import HfConfig
from specpipe.contracts import Dtype, ModelConfig
from specpipe.errors import ConfigError, Unsupported

ROPE_TYPES = ("default", "linear", "llama3")


def need(hf: HfConfig, key: str) -> int:
    """Return a positive whole number; raises ConfigError if the key has none."""
    value = hf.get(key)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"config.json: '{key}' is {value!r}: must be a positive whole number")
    return value


def require_act(hf: HfConfig, *known: str, key: str = "hidden_act") -> str:
    """Return the activation; raises Unsupported unless it is one of `known`, default first."""
    act = str(hf.get(key) or known[0])
    if act not in known:
        raise Unsupported(f"config.json has {key} {act!r}; known here: {', '.join(known)}")
    return act


def rope(hf: HfConfig) -> tuple[float, dict[str, Any] | None]:
    """Return the base and HF's whole `rope_scaling` (None if plain).

    transformers 5 writes both into `rope_parameters`, older releases write `rope_theta` and
    `rope_scaling`, with `type` before `rope_type`. Raises Unsupported for unknown kinds.
    """
    new = dict(hf.get("rope_parameters") or {})
    theta = float(new.pop("rope_theta", hf.get("rope_theta") or 10000.0))
    new.pop("partial_rotary_factor", None)
    scaling = new or dict(hf.get("rope_scaling") or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise Unsupported(
            f"config.json has rope scaling of type {kind!r}", hint=f"known: {', '.join(ROPE_TYPES)}"
        )
    return theta, None if kind == "default" else {**scaling, "rope_type": kind}


def rms_decoder(hf: HfConfig, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return the facts that Llama and its relatives spell alike; families replace what differs.

    Raises ConfigError for a missing key or head counts that do not divide.
    """
    theta, scaling = rope(hf)
    heads = need(hf, "num_attention_heads")
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ConfigError(f"config.json: {heads} heads do not divide by {kv_heads} KV heads")
    return ModelConfig(
        architecture=architecture,
        dtype=dtype,
        hidden_size=need(hf, "hidden_size"),
        num_hidden_layers=need(hf, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=hf.get("head_dim") or need(hf, "hidden_size") // heads,
        intermediate_size=need(hf, "intermediate_size"),
        vocab_size=need(hf, "vocab_size"),
        max_position_embeddings=need(hf, "max_position_embeddings"),
        norm_epsilon=float(hf.get("rms_norm_eps", 1e-6)),
        rotary_base=theta,
        rotary_scaling=scaling,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )
