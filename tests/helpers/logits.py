"""Logits of many shapes: flat, peaked, tied, banned, of any size."""

from collections.abc import Callable

import numpy as np
import pytest

from specpipe.core.contracts import Logits

Make = Callable[[np.random.Generator, int], np.ndarray]


def few_that_are_likely(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.where(np.arange(size) % 997 == 2, 20, rng.normal(size=size))


def mostly_banned(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.where(np.arange(size) % 5 == 1, rng.normal(size=size), -np.inf)


def all_but_three_banned(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.where(
        np.isin(np.arange(size), (1, size // 2, size - 1)), rng.normal(size=size), -np.inf
    )


LOGITS: dict[str, Make] = {
    "nearly flat": lambda rng, size: rng.normal(size=size),
    "spread": lambda rng, size: 3 * rng.normal(size=size),
    "peaked": lambda rng, size: 8 * rng.normal(size=size) - 300,
    "few likely": few_that_are_likely,
    "with ties": lambda rng, size: np.round(2 * rng.normal(size=size)),
    "in steps of bfloat16": lambda rng, size: _bfloat16(4 * rng.normal(size=size)),
    "by rank": lambda rng, size: -1.1 * np.log1p(rng.permutation(size)),
    "in order": lambda rng, size: -np.arange(size) / size,
    "mostly banned": mostly_banned,
    "banned but for three": all_but_three_banned,
    "far apart": lambda rng, size: 1e30 * rng.normal(size=size),
}
every_kind = pytest.mark.parametrize("kind", LOGITS)


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def made(kind: str, size: int) -> Logits:
    """Return logits [size] of a kind, the same in every call."""
    return LOGITS[kind](np.random.default_rng(size), size).astype(np.float32)
