"""Attention masks: the tokens that every new token attends to. They are added to the scores.

Row m * G + g of a mask belongs to new token m and to head g of each group of G heads. The columns
are the rows of the cache, followed by the new tokens.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpipe.contracts import Ints
from specpipe.model import ModelConfig

HIDDEN = np.float32(-3.0e38)  # added to a score, it makes the attention weight 0


@dataclass(frozen=True, eq=False)
class Step:
    """The new tokens of one call: a tree after `cached` rows; the graph gets `past` rows."""

    parents: Ints  # [n], indices among the new tokens; -1: the end of the cache
    positions: Ints  # [M], M >= n: the rest is padding
    cached: int
    past: int

    @property
    def key_positions(self) -> Ints:
        """The position of every column in the sequence."""
        return np.concatenate([np.arange(self.past), self.positions])


def visible(step: Step) -> NDArray[np.bool_]:
    """Return [M, past + M]: each token sees the cache, its ancestors and itself."""
    count = len(step.positions)
    seen = np.zeros((count, step.past + count), np.bool_)
    seen[:, : step.cached] = True
    own = seen[:, step.past :]
    own[: len(step.parents), : len(step.parents)] = ancestors(step.parents)
    np.fill_diagonal(own, True)
    return seen


def mask(step: Step, model: ModelConfig, sliding_window: int = 0) -> NDArray[np.float32]:
    """Return the mask of layers with this window (0: none), [1, 1 or K, M * G, past + M]."""
    seen = visible(step)
    if sliding_window:
        seen &= step.key_positions > step.positions[:, None] - sliding_window
    groups = model.num_attention_heads // model.num_key_value_heads
    if model.position_embedding_type == "alibi_with_scale":
        return np.where(np.repeat(seen, groups, axis=0)[None, None], _alibi(step, model), HIDDEN)
    return np.repeat(np.where(seen, np.float32(0), HIDDEN), groups, axis=0)[None, None]


def _alibi(step: Step, model: ModelConfig) -> NDArray[np.float32]:
    """Return [1, K, M * G, past + M]: ALiBi's bias of the scores (2108.12409).

    A multiple of the key's position instead of the distance: the two differ by a constant per row,
    which softmax ignores. It is multiplied by the attention scale, as in Falcon.
    """
    kv_heads, count = model.num_key_value_heads, len(step.positions)
    slopes = slopes_of(model.num_attention_heads) * np.float32(model.attention_scale)
    rows = np.tile(slopes.reshape(kv_heads, 1, -1), (1, count, 1)).reshape(1, kv_heads, -1, 1)
    return np.multiply(rows, step.key_positions, dtype=np.float32)


def slopes_of(heads: int) -> NDArray[np.float32]:
    """Return the ALiBi slope of every head; computed as in BLOOM if `heads` is no power of two."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    rest = [2.0 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(first + rest, np.float32)


def depths(parents: Ints) -> Ints:
    """Return the number of ancestors of each new token, among the new tokens."""
    if is_chain(parents):
        return np.arange(len(parents))
    depth = np.zeros(len(parents), np.int64)
    for node, parent in enumerate(parents):
        depth[node] = 0 if parent < 0 else depth[parent] + 1
    return depth


def is_chain(parents: Ints) -> bool:
    """Tell whether every token follows the one before."""
    return bool((parents == np.arange(-1, len(parents) - 1)).all())


def ancestors(parents: Ints) -> NDArray[np.bool_]:
    """Return [n, n]: row i marks i and everything above it."""
    n = len(parents)
    if is_chain(parents):
        return np.tri(n, dtype=np.bool_)
    seen = np.eye(n, dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] |= seen[parent]
    return seen
