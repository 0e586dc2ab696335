"""Reads the keys of Hugging Face's config.json that most architectures share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specpipe.checkpoint.families import HfConfig
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.model import Dtype, ModelConfig

LIMITS = {  # each the rest of a sentence that begins with the name of the class
    "groups": "has a KV head for every head, this model shares them",
    "epsilon": "norms with an epsilon of 1e-5, this model has another",
    "scaling": "does not scale its rotary positions, this model does",
    "inner": "has an MLP of four times the hidden size, this model another",
    "in_turn": "computes attention and MLP side by side, this model in turn",
    "no_bias": "has biases in attention, this model has none",
    "heads": "divides the hidden size among its heads, this model does not",
}
ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


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


def rope(hf: HfConfig, kinds: Sequence[str] = ROPE_TYPES) -> tuple[float, dict[str, Any] | None]:
    """Return the base and HF's whole `rope_scaling` (None if plain).

    transformers 5 writes both into `rope_parameters`, older releases write `rope_theta` and
    `rope_scaling`, with `type` before `rope_type`. Dynamic NTK scaling begins behind
    `max_position_embeddings`, where no engine goes, so it is plain. Raises Unsupported for other
    kinds than `kinds`.
    """
    new = dict(hf.get("rope_parameters") or {})
    old_base = hf.get("rope_theta") or hf.get("rotary_emb_base") or 10000.0
    theta = float(new.pop("rope_theta", old_base))
    new.pop("partial_rotary_factor", None)
    scaling = new or dict(hf.get("rope_scaling") or {})
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    kind = "longrope" if kind == "su" else kind
    if kind not in kinds:
        raise Unsupported(
            f"config.json has rope scaling of type {kind!r}", hint=f"known: {', '.join(kinds)}"
        )
    return theta, None if kind in ("default", "dynamic") else {**scaling, **_kinds(scaling, kind)}


def _kinds(scaling: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Return both spellings of the kind, as far as they are there: upstream reads `type` first."""
    return {"rope_type": kind, **({"type": kind} if "type" in scaling else {})}


def unmet(**limits: bool) -> tuple[str, ...]:
    """Return what upstream's class cannot do, of what is known to be missing in some class."""
    return tuple(LIMITS[name] for name, holds in limits.items() if holds)


def rotary_width(hf: HfConfig, head_size: int, default: float) -> int:
    """Return how many values of every head are rotated; `default` is a share of the head."""
    new = hf.get("rope_parameters") or {}
    share = new.get("partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct")))
    return int(head_size * float(default if share is None else share))


def layer_windows(hf: HfConfig, sliding: Callable[[int], bool]) -> tuple[int, ...]:
    """Return the sliding window of every layer, 0 for none; empty if no layer has one that cuts.

    `layer_types` lists the layers that slide; before transformers had it, `sliding` did.
    """
    size, layers = hf.get("sliding_window"), need(hf, "num_hidden_layers")
    if not size or size >= need(hf, "max_position_embeddings"):
        return ()
    kinds = hf.get("layer_types")
    slides = [k == "sliding_attention" for k in kinds] if kinds else map(sliding, range(layers))
    found = tuple(size if slide else 0 for slide in slides)
    return found if any(found) else ()


def all_layers(index: int) -> bool:
    """Return true: every layer slides."""
    return True


def share_heads(hf: HfConfig, key: str, hidden: int) -> tuple[int, int]:
    """Return the number of heads and their size; raises ConfigError if `hidden` does not divide."""
    heads = need(hf, key)
    if hidden % heads:
        raise ConfigError(f"config.json: {hidden} hidden values do not divide by {heads} heads")
    return heads, hidden // heads


def rms_decoder(
    hf: HfConfig, dtype: Dtype, architecture: str, rope_types: Sequence[str] = ROPE_TYPES
) -> ModelConfig:
    """Return the facts that Llama and its relatives spell alike; families replace what differs.

    Raises ConfigError for a missing key or head counts that do not divide.
    """
    theta, scaling = rope(hf, rope_types)
    hidden = need(hf, "hidden_size")
    heads = need(hf, "num_attention_heads")
    kv_heads = hf.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ConfigError(f"config.json: {heads} heads do not divide by {kv_heads} KV heads")
    return ModelConfig(
        architecture=architecture,
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=need(hf, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_size=hf.get("head_dim") or hidden // heads,
        intermediate_size=need(hf, "intermediate_size"),
        vocab_size=need(hf, "vocab_size"),
        max_position_embeddings=need(hf, "max_position_embeddings"),
        norm_epsilon=float(hf.get("rms_norm_eps", 1e-6)),
        rotary_base=theta,
        rotary_scaling=scaling,
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    )
