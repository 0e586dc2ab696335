"""Reads what most architectures spell alike in Hugging Face's config.json."""

from collections.abc import Callable, Sequence

from specpipe.checkpoint.families.keys import MOST_LAYERS, Keys
from specpipe.checkpoint.families.rope import KINDS, Rope, read_rope, rotated
from specpipe.core.model import Dtype, Experts, ModelConfig

LIMITS = {  # each the rest of a sentence that begins with the name of the class
    "groups": "has a KV head for every head, this model shares them",
    "epsilon": "norms with an epsilon of 1e-5, this model has another",
    "scaling": "does not scale its rotary positions, this model does",
    "inner": "has an MLP of four times the hidden size, this model another",
    "in_turn": "computes attention and MLP side by side, this model in turn",
    "no_bias": "has biases in attention, this model has none",
    "heads": "divides the hidden size among its heads, this model does not",
}
YARN_SINCE = (0, 20)  # TensorRT-LLM's attention computes yarn at least since this release
_KINDS_OF_LAYERS = ("full_attention", "sliding_attention")


def require_act(hf: Keys, *known: str, key: str = "hidden_act") -> str:
    """Return the activation; raises Unsupported unless it is one of `known`."""
    return hf.among(key, *known)


def unmet(**limits: bool) -> tuple[str, ...]:
    """Return what upstream's class cannot do, of what is known to be missing in some class."""
    return tuple(LIMITS[name] for name, holds in limits.items() if holds)


def since_scaling(rope: Rope) -> tuple[int, int]:
    """Return the first release whose attention computes a scaling."""
    kind = (rope.scaling or {}).get("rope_type")
    return YARN_SINCE if kind == "yarn" else (0, 0)


def layer_windows(
    hf: Keys, model: ModelConfig, sliding: Callable[[int], bool] | None = None
) -> tuple[int, ...]:
    """Return the sliding window of every layer, 0 for none; empty if no layer has one that cuts.

    With `sliding`, which tells whether a layer slides, the class also reads `layer_types`, which
    then lists the layers; without it every layer slides.
    """
    size, layers = hf.maybe_whole("sliding_window", least=0), model.num_hidden_layers
    slides = sliding_layers(hf, layers, sliding)
    if not size or size >= model.max_position_embeddings:
        return ()
    found = tuple(size if slide else 0 for slide in slides)
    return found if any(found) else ()


def sliding_layers(
    hf: Keys, layers: int, sliding: Callable[[int], bool] | None = None
) -> list[bool]:
    """Return which layers slide; `sliding` as in `layer_windows`."""
    if sliding is None:
        return [True] * layers
    return _typed_layers(hf, layers) or list(map(sliding, range(layers)))


def _typed_layers(hf: Keys, layers: int) -> list[bool]:
    """Return which layers slide, from `layer_types`; nothing if there is no such key."""
    kinds = hf.words("layer_types")
    other = next((kind for kind in kinds if kind not in _KINDS_OF_LAYERS), None)
    if other is not None:
        raise hf.unsupported(f"has layer_types {other!r}; known: {', '.join(_KINDS_OF_LAYERS)}")
    if kinds and len(kinds) != layers:
        raise hf.contradiction(
            f"'layer_types' lists {len(kinds)} layers, but there are {layers} ('num_hidden_layers')"
        )
    return [kind == "sliding_attention" for kind in kinds]


def read_experts(hf: Keys, key: str, mode: int = 1) -> Experts:
    """Return a mixture of experts; raises ConfigError if a token has more than there are."""
    count, chosen = hf.whole(key, most=MOST_LAYERS), hf.whole("num_experts_per_tok")
    if chosen > count:
        raise hf.contradiction(f"'num_experts_per_tok' is {chosen}, but '{key}' is {count}")
    return Experts(count, chosen, mode)


def share_heads(hf: Keys, key: str, hidden_key: str = "hidden_size") -> tuple[int, int]:
    """Return the number of heads and their size; raises ConfigError if they do not divide."""
    heads, hidden = hf.whole(key), hf.whole(hidden_key)
    if hidden % heads:
        raise hf.contradiction(
            f"{hidden} hidden values ('{hidden_key}') do not divide by {heads} heads ('{key}')"
        )
    return heads, hidden // heads


def group_heads(hf: Keys, heads: int, key: str = "num_key_value_heads") -> int:
    """Return the number of KV heads, by default one for every head."""
    groups = hf.maybe_whole(key) or heads
    if heads % groups:
        raise hf.contradiction(
            f"{heads} heads do not divide by {groups} KV heads ('num_attention_heads', '{key}')"
        )
    return groups


def rms_decoder(
    hf: Keys,
    dtype: Dtype,
    architecture: str,
    rope_kinds: Sequence[str] = KINDS,
    *,
    epsilon: str = "rms_norm_eps",
    partial: bool = False,
) -> ModelConfig:
    """Return the facts that Llama and its relatives spell alike; families replace what differs.

    `epsilon` is the key of the norms', `partial` tells whether the class may rotate heads in part.
    Raises ConfigError for a wrong value or head counts that do not divide.
    """
    hidden, heads = hf.whole("hidden_size"), hf.whole("num_attention_heads")
    head_size = hf.maybe_whole("head_dim") or share_heads(hf, "num_attention_heads")[1]
    longest = hf.whole("max_position_embeddings")
    rope = read_rope(hf, rope_kinds, longest=longest)
    width = rotated(hf, head_size, rope.share if partial else 1.0)
    return ModelConfig(
        architecture=architecture,
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=hf.layers("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=group_heads(hf, heads),
        head_size=head_size,
        intermediate_size=hf.whole("intermediate_size"),
        vocab_size=hf.whole("vocab_size"),
        max_position_embeddings=max(longest, rope.reach),
        norm_epsilon=hf.number(epsilon),
        rotary_base=rope.base,
        rotary_scaling=rope.scaling,
        rotary_embedding_dim=width if partial else None,
        tie_word_embeddings=hf.flag("tie_word_embeddings"),
        upstream_limits=rope.limits,
        upstream_since=since_scaling(rope),
    )
