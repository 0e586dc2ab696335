"""Rotary positions (2104.09864) as tables of cosines and sines, with HF's scaling rules.

Computed in float32 and in transformers' order of operations, so that both agree to the last digit.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specpipe.core.contracts import Logits
from specpipe.core.model import ModelConfig, yarn_attention


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
    growth = np.float32(model.rotary_base) ** exponent
    rule = dict(model.rotary_scaling or {})
    inverse = _scale(growth.astype(np.float32), rule, model)
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse[None, :]
    angles = np.concatenate([angles, angles], axis=1)
    factor = _attention_factor(rule, model.max_position_embeddings)
    rest = ((0, 0), (0, model.head_size - width))
    return RopeTable(
        np.pad(np.cos(angles) * factor, rest, constant_values=1),
        np.pad(np.sin(angles) * factor, rest),
    )


def rope_inputs(model: ModelConfig, positions: int) -> dict[str, Logits]:
    """Return the tables [positions, head_size] that rows of the graph's inputs are taken from."""
    table, how = rope_table(model, positions), model.arithmetic
    found = {"cos": table.cos, "sin": table.sin}
    if how.local_layers:
        local = replace(model, rotary_base=how.local_rotary_base, rotary_scaling=None)
        table = rope_table(local, positions)
        found |= {"local_cos": table.cos, "local_sin": table.sin}
    return found


def exact_positions(model: ModelConfig) -> int | None:
    """Return the number of positions with exact angles; None: all positions.

    LongRoPE has one set of factors up to the original length and another beyond it; this table has
    only the first.
    """
    rule = dict(model.rotary_scaling or {})
    if rule.get("rope_type") != "longrope":
        return None
    return int(rule["original_max_position_embeddings"])


def _scale(growth: Logits, scaling: dict[str, Any], model: ModelConfig) -> Logits:
    """Return the angles a position; `growth` are their inverses without scaling."""
    kind, inverse = scaling.get("rope_type", "default"), (1.0 / growth).astype(np.float32)
    if kind == "linear":
        return inverse / np.float32(scaling["factor"])
    if kind == "longrope":
        return inverse / np.array(scaling["short_factor"], np.float32)
    if kind == "yarn":
        return _yarn(growth, scaling, _ramp(scaling, model.rotary_base, model.rotary_dim))
    if kind == "llama3":
        return _llama3(
            inverse, {k: float(v) for k, v in scaling.items() if k != "rope_type" and k != "type"}
        )
    return inverse


def _attention_factor(scaling: dict[str, Any], longest: int) -> np.float32:
    """Return LongRoPE's (2402.13753) or yarn's factor for cosines and sines; 1 for other kinds."""
    if scaling.get("rope_type") not in ("longrope", "yarn"):
        return np.float32(1)
    if scaling.get("attention_factor") is not None:
        return np.float32(scaling["attention_factor"])
    if scaling["rope_type"] == "yarn":
        return np.float32(yarn_attention(scaling))
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


def _yarn(growth: Logits, rule: dict[str, Any], ramp: Logits) -> Logits:
    """yarn (2309.00071): keep high frequencies, divide low ones by `factor`, blend those between.

    `ramp` is the share that is divided.
    """
    kept, divided = 1.0 / growth, 1.0 / (np.float32(rule["factor"]) * growth)
    share = np.float32(1) - ramp
    return (divided * (np.float32(1) - share) + kept * share).astype(np.float32)


def _ramp(rule: dict[str, Any], base: float, width: int) -> Logits:
    """Return yarn's ramp from 0 to 1 over the frequencies.

    It begins where a dimension turns `beta_fast` times over the original length, and ends where it
    turns `beta_slow` times.
    """
    turns = (rule.get("beta_fast") or 32, rule.get("beta_slow") or 1)
    original = rule["original_max_position_embeddings"]
    low, high = (
        width * math.log(original / (count * 2 * math.pi)) / (2 * math.log(base)) for count in turns
    )
    if rule.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 * (low == high)
    steps = (np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    return np.clip(steps, 0, 1).astype(np.float32)
