"""Checks of the arrays of a call, since the CPU plugin checks no contents.

With a wrong table it would read and write memory of others, or end the process.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

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
        count, wanted = len(part.tokens), part.wanted.tolist()
        _need(count > 0, "an item has no rows")
        inside = not wanted or (min(wanted) >= 0 and max(wanted) < count)
        _need(inside, f"a wanted row is not among {count}")
        if part.parents is not None:
            parents = part.parents.tolist()
            _need(len(parents) == count, "there are more or fewer parents than rows")
            below = all(parent < row for row, parent in enumerate(parents))
            _need(below, "a parent does not come before its child")
            _need(min(parents) >= ROOT, "a parent is no row")
    tokens = np.concatenate([part.tokens for part in parts])
    known = tokens.min() >= 0 and tokens.max() < vocab_size
    _need(bool(known), f"a token is not in the vocabulary of {vocab_size}")


def check_batch(batch: Batch, parts: Sequence[Part], blocks: int, least: int) -> None:
    """Raise InvalidBatch if the tables do not fit the rows, or a written block has two users."""
    begins, past, starts = batch.begins.tolist(), batch.past.tolist(), batch.table_begins.tolist()
    table = batch.table.tolist()
    rows = [max(len(part.tokens), least) for part in parts]
    _need(begins == list(accumulate(rows, initial=0)), "the sums of rows are wrong")
    _need(len(table) == starts[-1], "the sums of the tables are wrong")
    inside = min(table) >= 0 and max(table) < blocks
    _need(inside, f"a block is not among the {blocks} of the pool")
    users, written = Counter[int](), list[int]()
    for n, part in enumerate(parts):
        own, end = table[starts[n] : starts[n + 1]], past[n] + rows[n]
        _need(len(own) * BLOCK >= end, "a table has too few blocks")
        written += own[past[n] // BLOCK : (end - 1) // BLOCK + 1]
        # The rows of a chain may be parts of their own: the last of them has all blocks of it.
        if n + 1 == len(parts) or parts[n + 1].cache is not part.cache:
            users.update(own)
    _need(all(users[block] == 1 for block in written), "a block that is written has two users")


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidBatch(otherwise)
