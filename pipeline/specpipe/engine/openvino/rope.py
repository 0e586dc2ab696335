"""Rotary positions (2104.09864) as tables of cosines and sines, with HF's scaling rules.

Computed in float32 in transformers' order of operations, so that both agree to the last digits.
"""

import math
from dataclasses import dataclass

import numpy as np

from specpipe.contracts import Logits, ModelConfig


@dataclass(frozen=True)
class RopeTable:
    """One row a position."""

    cos: Logits  # [positions, head_size]
    sin: Logits  # [positions, head_size]


def rope_table(model: ModelConfig, positions: int) -> RopeTable:
    """Return the table for positions 0 .. `positions` - 1."""
    exponent = np.arange(0, model.head_size, 2, dtype=np.float32) / np.float32(model.head_size)
    inverse = (1.0 / np.float32(model.rotary_base) ** exponent).astype(np.float32)
    inverse = _scale(inverse, dict(model.rotary_scaling or {}))
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]
    angles = np.concatenate([angles, angles], axis=1)
    return RopeTable(np.cos(angles), np.sin(angles))


def _scale(inverse: Logits, scaling: dict[str, str | float]) -> Logits:
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return inverse / np.float32(scaling["factor"])
    if kind == "llama3":
        return _llama3(
            inverse, {k: float(v) for k, v in scaling.items() if k != "rope_type" and k != "type"}
        )
    return inverse


def _llama3(inverse: Logits, rule: dict[str, float]) -> Logits:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, those between are blended."""
    context = rule["original_max_position_embeddings"]
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    wavelength = 2 * math.pi / inverse
    slowed = inverse / np.float32(rule["factor"])
    blend = (context / wavelength - low) / (high - low)
    between = (1 - blend) * slowed + blend * inverse
    out = np.where(wavelength > context / low, slowed, inverse)
    medium = (wavelength <= context / low) & (wavelength >= context / high)
    return np.where(medium, between, out).astype(np.float32)
