"""Checks of the arrays of a call, since the CPU plugin checks no contents.

With a wrong table it would read and write memory of others, or end the process.
"""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from specpipe.core.contracts import ROOT
from specpipe.engine.openvino.batch import Batch, Part
from specpipe.engine.openvino.blocks import BLOCK


class InvalidBatch(Exception):
    """A step that the graph cannot run: a mistake of the caller or of this engine."""


def check_parts(parts: Sequence[Part], vocab_size: int) -> None:
    """Raise InvalidBatch if the rows of an item are wrong in themselves."""
    _need(len(parts) > 0, "a step has no items")
    caches = {id(part.cache) for part in parts}
    _need(len(caches) == len(parts), "two items of a step have the same cache")
    for part in parts:
        count = len(part.tokens)
        _need(count > 0, "an item has no rows")
        if len(part.wanted):
            low, high = part.wanted.min(), part.wanted.max()
            _need(low >= 0 and high < count, f"a wanted row is not among {count}")
        if part.parents is not None:
            _need(len(part.parents) == count, "there are more or fewer parents than rows")
            below = part.parents < np.arange(count)
            _need(bool(below.all()), "a parent does not come before its child")
            _need(int(part.parents.min()) >= ROOT, "a parent is no row")
    tokens = np.concatenate([part.tokens for part in parts])
    inside = tokens.min() >= 0 and tokens.max() < vocab_size
    _need(bool(inside), f"a token is not in the vocabulary of {vocab_size}")


def check_batch(batch: Batch, parts: Sequence[Part], blocks: int, least: int) -> None:
    """Raise InvalidBatch if the tables do not fit the rows, or a written block has two users."""
    rows = np.array([max(len(part.tokens), least) for part in parts])
    _need(np.array_equal(np.diff(batch.begins), rows), "the sums of rows are wrong")
    ends = batch.past + rows
    sizes, starts = np.diff(batch.table_begins), batch.table_begins[:-1]
    _need(len(batch.table) == int(batch.table_begins[-1]), "the sums of the tables are wrong")
    _need(bool((sizes * BLOCK >= ends).all()), "a table has too few blocks")
    inside = batch.table.min() >= 0 and batch.table.max() < blocks
    _need(bool(inside), f"a block is not among the {blocks} of the pool")
    first, last = starts + batch.past // BLOCK, starts + (ends - 1) // BLOCK
    # The rows of a chain may be parts of their own: the last of them has all blocks of the chain.
    after = [part.cache for part in parts[1:]]
    lasts = [part.cache is not other for part, other in zip_longest(parts, after)]
    users = np.bincount(batch.table[np.repeat(lasts, sizes)], minlength=blocks)
    for offset in range(int((last - first).max()) + 1):
        written = batch.table[np.minimum(first + offset, last)]
        _need(bool((users[written] == 1).all()), "a block that is written has two users")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidBatch(otherwise)
