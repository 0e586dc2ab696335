"""Rotary positions (2104.09864) as tables of cosines and sines, with HF's scaling rules.

Computed in float32 and in transformers' order of operations, so that both agree to the last digit.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from specpipe.core.contracts import Logits
from specpipe.core.model import ModelConfig


@dataclass(frozen=True)
class RopeTable:
    """One row per position."""

    cos: Logits  # [positions, head_size]
    sin: Logits  # [positions, head_size]


def rope_table(model: ModelConfig, positions: int) -> RopeTable:
    """Return the table for positions 0 .. `positions` - 1.

    In partly rotated heads the other dimensions have a cosine of 1 and a sine of 0.
    """
    width = model.rotary_dim
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(max(width, 1))
    inverse = (1.0 / np.float32(model.rotary_base) ** exponent).astype(np.float32)
    rule = dict(model.rotary_scaling or {})
    inverse = _scale(inverse, rule)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]
    angles = np.concatenate([angles, angles], axis=1)
    factor = _attention_factor(rule, model.max_position_embeddings)
    rest = ((0, 0), (0, model.head_size - width))
    return RopeTable(
        np.pad(np.cos(angles) * factor, rest, constant_values=1),
        np.pad(np.sin(angles) * factor, rest),
    )


def exact_positions(model: ModelConfig) -> int | None:
    """Return the number of positions with exact angles; None: all positions.

    LongRoPE has one set of factors up to the original length and another beyond it; this table has
    only the first.
    """
    rule = dict(model.rotary_scaling or {})
    if rule.get("rope_type") != "longrope":
        return None
    return int(rule["original_max_position_embeddings"])


def _scale(inverse: Logits, scaling: dict[str, Any]) -> Logits:
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return inverse / np.float32(scaling["factor"])
    if kind == "longrope":
        return inverse / np.array(scaling["short_factor"], np.float32)
    if kind == "llama3":
        return _llama3(
            inverse, {k: float(v) for k, v in scaling.items() if k != "rope_type" and k != "type"}
        )
    return inverse


def _attention_factor(scaling: dict[str, Any], longest: int) -> np.float32:
    """Return LongRoPE's factor (2402.13753) for cosines and sines; 1 for other kinds."""
    if scaling.get("rope_type") != "longrope":
        return np.float32(1)
    if scaling.get("attention_factor") is not None:
        return np.float32(scaling["attention_factor"])
    original = scaling["original_max_position_embeddings"]
    factor = scaling.get("factor") or longest / original
    return np.float32(math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1)


def _llama3(inverse: Logits, rule: dict[str, float]) -> Logits:
    """Llama 3.1: divide low frequencies by `factor`, keep high ones, blend those between."""
    context = rule["original_max_position_embeddings"]
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    wavelength = 2 * math.pi / inverse
    slowed = inverse / np.float32(rule["factor"])
    blend = (context / wavelength - low) / (high - low)
    between = (1 - blend) * slowed + blend * inverse
    out = np.where(wavelength > context / low, slowed, inverse)
    medium = (wavelength <= context / low) & (wavelength >= context / high)
    return np.where(medium, between, out).astype(np.float32)
