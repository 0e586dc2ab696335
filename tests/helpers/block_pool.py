"""A pool of KV blocks whose rows show which text they were computed for.

The storage has one number a row. A step writes into each row a digest of the text up to its token.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from specpipe.core.contracts import ROOT
from specpipe.engine.openvino.blocks import BLOCK, BlockCache, BlockPool

GARBAGE = -1


class Rows:
    """A storage with one number a row; it counts what the pool does to it."""

    def __init__(self, blocks: int) -> None:
        self.rows = np.full(blocks * BLOCK, GARBAGE, np.int64)
        self.copied = self.moved = 0

    def copy_block(self, source: int, target: int) -> None:
        a, b = source * BLOCK, target * BLOCK
        self.rows[b : b + BLOCK] = self.rows[a : a + BLOCK]
        self.copied += 1

    def move_rows(self, source: np.ndarray, target: np.ndarray) -> None:
        self.rows[target] = self.rows[source]
        self.moved += len(source)


def digests(tokens: Sequence[int]) -> list[int]:
    """Return what stands in the rows of a text: each entry depends on all tokens up to its own."""
    return list(accumulate(tokens, lambda before, token: hash((before, token)), initial=0))[1:]


class Bench:
    """A pool with its storage, and the part of an engine that writes rows."""

    def __init__(self, blocks: int, **options) -> None:
        self.storage = Rows(blocks)
        self.pool = BlockPool(blocks, self.storage, **options)

    def write(self, cache: BlockCache, tokens: Sequence[int], parents=None) -> None:
        """Do a step: write the rows of a chunk, or of a tree, after the kept rows."""
        self.pool.reserve(cache, len(tokens))
        slots = self.slots(cache, len(tokens))[cache.length :]
        self.storage.rows[slots] = step_digests(cache.tokens, tokens, parents)
        cache.written(np.array(tokens, np.int64))

    def extend(self, cache: BlockCache, tokens: Sequence[int]) -> None:
        """Do a step and keep all its rows."""
        self.write(cache, tokens)
        cache.keep(np.arange(len(tokens)))

    def holding(self, tokens: Sequence[int]) -> BlockCache:
        """Return a cache that keeps the rows of `tokens`."""
        cache = self.pool.open([*tokens, 0])
        self.extend(cache, tokens[cache.length :])
        return cache

    def slots(self, cache: BlockCache, rows: int) -> np.ndarray:
        table = np.array(cache.table(rows), np.int64)
        places = np.arange(cache.length + rows)
        return table[places // BLOCK] * BLOCK + places % BLOCK

    def check(self, cache: BlockCache, tokens: Sequence[int]) -> None:
        """Compare the kept tokens and rows of a cache with those of `tokens`."""
        assert list(cache.tokens) == list(tokens) and cache.length == len(tokens)
        assert self.storage.rows[self.slots(cache, 0)].tolist() == digests(tokens)


def step_digests(kept: Sequence[int], tokens: Sequence[int], parents=None) -> list[int]:
    """Return what stands in the rows of a step: each entry depends on `kept` and on its path."""
    found = digests(kept)[-1:] or [0]  # entry 0 belongs to ROOT
    parents = range(ROOT, len(tokens) - 1) if parents is None else parents
    for token, parent in zip(tokens, parents, strict=True):
        found.append(hash((found[parent + 1], token)))
    return found[1:]


def text(length: int, start: int = 0) -> list[int]:
    return list(range(start, start + length))
