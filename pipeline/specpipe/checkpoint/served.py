"""The facts of a model that is served as its files are, whatever its architecture.

A plan for such a model reads config.json here only: the config of the text model within it, its
sizes as a family here reads them, else those that most architectures spell alike.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specpipe.checkpoint.families import (
    HfConfig,
    architecture_of,
    read_facts,
    require_generator,
)
from specpipe.checkpoint.families.keys import MOST, is_number, is_whole
from specpipe.checkpoint.families.rope import ORIGINAL
from specpipe.checkpoint.least_weights import least_bytes
from specpipe.checkpoint.source import Source
from specpipe.core.errors import Unsupported
from specpipe.core.model import Dtype, ModelConfig

# Where a config of several models keeps that of the text.
_INNER = ("text_config", "llm_config", "language_config", "thinker_config", "decoder", "generator")
# fact -> its spellings
_SPELT = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "num_key_value_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num"),
    "head_size": ("head_dim", "kv_channels"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
    ),
}


@dataclass(frozen=True)
class UnconvertedModel:
    """A model that is not converted; in `model`, a size of 0 is one that is not known."""

    model: ModelConfig
    is_known: bool  # whether its memory follows from the facts
    next_token_layers: int = 0  # layers for multi-token prediction
    least_bytes: int = 0  # of weights whose size is not known


def read_served(
    config: HfConfig, dtype: Dtype, file: Path, source: Source | None = None
) -> UnconvertedModel:
    """Return the facts of a parsed config.json, and the bytes of the weights next to it.

    The bytes count in the place of the parameters where those do not tell the memory: quantised
    weights, models that are more than their text, architectures that are not known here. Raises
    ConfigError for wrong values of an architecture that is known, and for models that generate no
    text.
    """
    text, name = text_config(config), architecture_of(config, file)
    require_generator(config, name, file)
    layers = count_of(text, "num_nextn_predict_layers")
    described = config.get("quantization_config") or text.get("quantization_config")
    least = least_bytes(text, described or is_quantized(config, source))
    stored = stored_bytes(source) if source else 0
    try:
        model = read_facts(text, dtype, file)
    except Unsupported:
        model = replace(outline(text, dtype, name), stored_bytes=stored)
        return UnconvertedModel(model, False, layers, 0 if stored else least)
    by_bytes = text is not config or is_quantized(config, source)
    model = replace(model, architecture=name, stored_bytes=stored * by_bytes)
    is_known = bool(stored) or not by_bytes
    return UnconvertedModel(model, is_known, layers, 0 if is_known else least)


def text_config(config: HfConfig) -> HfConfig:
    """Return the config of the text model: one within it, or the whole."""
    spellings = (*_SPELT["hidden_size"], *_SPELT["num_hidden_layers"])
    if any(key in config for key in spellings):
        return config
    inner = next((part for key in _INNER if isinstance(part := config.get(key), dict)), None)
    return config if inner is None else text_config(inner)


def outline(text: HfConfig, dtype: Dtype, architecture: str) -> ModelConfig:
    """Return the facts that most architectures spell alike, for one that is not known here."""
    size = {fact: _first(text, spellings) for fact, spellings in _SPELT.items()}
    heads, hidden = size["num_attention_heads"], size["hidden_size"]
    return ModelConfig(
        architecture=architecture,
        dtype=dtype,
        hidden_size=hidden,
        num_hidden_layers=size["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=size["num_key_value_heads"] or heads,
        head_size=size["head_size"] or hidden // max(heads, 1),
        intermediate_size=0,
        vocab_size=size["vocab_size"],
        max_position_embeddings=_longest(text, size["max_position_embeddings"]),
        norm_epsilon=0.0,
        rotary_base=0.0,
    )


def _first(text: HfConfig, spellings: tuple[str, ...]) -> int:
    """Return the first of several sizes; 0 if there is none, as where layers differ in it."""
    return next((size for key in spellings if (size := count_of(text, key))), 0)


def count_of(text: HfConfig, key: str) -> int:
    """Return a whole number; 0 for every other value."""
    value = text.get(key)
    return value if is_whole(value) and 0 < value <= MOST else 0


def _longest(text: HfConfig, positions: int) -> int:
    """Return for how many positions a model is, with the scaling of its rotary positions."""
    rule: Any = text.get("rope_scaling") or text.get("rope_parameters") or {}
    factor = rule.get("factor") if isinstance(rule, dict) else None
    if not positions or not is_number(factor):
        return positions
    return max(positions, int(factor * (count_of(rule, ORIGINAL) or positions)))


def is_quantized(config: HfConfig, source: Source | None) -> bool:
    """Tell whether the weights are quantised, by a model's own description."""
    described = source is not None and (source.path / "hf_quant_config.json").is_file()
    inner = text_config(config).get("quantization_config")
    return described or bool(config.get("quantization_config") or inner)


def stored_bytes(source: Source) -> int:
    """Return the bytes of a source's weights as they are served; 0 if they are not known.

    Weights in float32 are served in 16 bits.
    """
    missing = source.missing
    sizes = [
        missing[file.name] if file.name in missing else file.stat().st_size
        for file in source.weights
    ]
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes):
        return 0
    text = text_config(source.hf_config)
    kind = text.get("dtype") or text.get("torch_dtype")
    wide = kind == "float32" and not is_quantized(source.hf_config, source)
    return sum(known) // (2 if wide else 1)
