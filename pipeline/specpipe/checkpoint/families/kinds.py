"""The types of the keys of Hugging Face's config.json, for every architecture.

A damaged or hand-written file is refused here, by key, before a family computes with it. Keys that
no family reads are not looked at.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from specpipe.core.errors import ConfigError

_POSITIVE = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
    "num_attention_heads", "num_key_value_heads", "num_kv_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "num_experts", "num_local_experts",
    "num_experts_per_tok", "n_embd", "n_head", "n_head_kv", "n_inner", "n_positions",
    "ffn_hidden_size", "decoder_sparse_step", "num_ln_in_parallel_attn",
)  # fmt: skip
_LAYERS, MOST_LAYERS = ("num_hidden_layers", "n_layer"), 10_000  # of which lists are made
MOST = 2**40
_COUNTS = ("sliding_window", "max_window_layers", "num_nextn_predict_layers")
_NUMBERS = (
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "rope_theta",
    "rotary_emb_base", "partial_rotary_factor", "rotary_pct", "query_pre_attn_scalar",
    "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip
_NEVER_NULL = (
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon",
    "query_pre_attn_scalar",
)  # fmt: skip
_SCALING = (
    "rope_theta", "factor", "low_freq_factor", "high_freq_factor",
    "original_max_position_embeddings", "partial_rotary_factor",
)  # fmt: skip


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and _is_whole(value) and 0 < value <= MOST


def _is_layers(value: object) -> bool:
    return isinstance(value, int) and _is_whole(value) and 0 < value <= MOST_LAYERS


def _is_count(value: object) -> bool:
    return isinstance(value, int) and _is_whole(value) and 0 <= value <= MOST


def _is_number(value: object) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)  # type: ignore[arg-type]


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _are_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(_is_count(item) for item in value)


_KINDS: tuple[tuple[tuple[str, ...], Callable[[object], bool], str], ...] = (
    (_POSITIVE, _is_positive, "a positive whole number"),
    (_LAYERS, _is_layers, f"a positive whole number, at most {MOST_LAYERS}"),
    (_COUNTS, _is_count, "a whole number"),
    (_NUMBERS, _is_number, "a number"),
    (("rope_parameters", "rope_scaling", "quantization_config"), _is_mapping, "an object"),
    (("architectures", "layer_types"), _are_words, "a list of names"),
    (("mlp_only_layers",), _are_counts, "a list of layers"),
)


def require_kinds(facts: Mapping[str, object], source: Path) -> None:
    """Raise ConfigError for the first key whose value is of another kind than every family reads.

    `null` stands for a key that is left out, but for epsilons and other divisors.
    """
    file = source / "config.json" if source.is_dir() else source  # a .gguf file
    for key, wanted in _misfits(facts):
        raise ConfigError(f"{file}: '{key}' is {_short(facts[key])}: must be {wanted}")
    for name in ("rope_parameters", "rope_scaling"):
        inner = facts.get(name)
        for key, value in inner.items() if isinstance(inner, dict) else ():
            if key in _SCALING and not _is_number(value):
                raise ConfigError(f"{file}: '{name}.{key}' is {_short(value)}: must be a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _misfits(facts: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for keys, fits, wanted in _KINDS:
        for key in keys:
            if key not in facts or (facts[key] is None and key not in _NEVER_NULL):
                continue
            if not fits(facts[key]):
                yield key, wanted
