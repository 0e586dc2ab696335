"""The arrays of one call: the rows of all items one after the other, their blocks and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Ints
from specpipe.engine.openvino.ancestry import ancestors, depths, is_chain
from specpipe.engine.openvino.blocks import BLOCK, BlockCache

Bytes = NDArray[np.uint8]
_NO_BIAS: Bytes = np.zeros(0, np.uint8)
_NO_BIAS.setflags(write=False)
_FIRST: Ints = np.zeros(1, np.int64)  # the index of the first row
_FIRST.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Part:
    """One item of a step, with the cache of this engine."""

    cache: BlockCache
    tokens: Ints  # [n]
    parents: Ints | None  # [n]; None: a chain
    wanted: Ints  # [r]
    before: int = 0  # rows of the item that come before, in an earlier call of the step or in this

    @property
    def past(self) -> int:
        """Count the rows before these: kept ones, and those of the item that come before."""
        return self.cache.length + self.before

    def piece(self, begin: int, end: int) -> "Part":
        """Return some rows of a chain, after the rows before them are written."""
        if end - begin == len(self.tokens):
            return self
        wanted = [row - begin for row in self.wanted.tolist() if begin <= row < end]
        rows, before = np.array(wanted, np.int64), self.before + begin
        return Part(self.cache, self.tokens[begin:end], None, rows, before)

    @property
    def tree(self) -> Ints | None:
        """The parents, unless every row follows the one before."""
        return None if self.parents is None or is_chain(self.parents) else self.parents


@dataclass(frozen=True, eq=False)
class Batch:
    """T rows of B sequences. In attention, the sequences of a batch-invariant graph have A rows,
    at least two each; otherwise A = T.
    """

    tokens: Ints  # [T]
    owners: Ints  # [T]  the sequence of each row
    places: Ints  # [T]  of each row among the rows of its sequence
    depths: Ints  # [T]  ancestors of each row among the rows of its sequence
    wanted: Ints  # [R]  indices into the rows
    past: Ints  # [B]  cached rows
    begins: Ints  # [B + 1]  first row of each sequence in attention, and A
    table: Ints  # [N]  the blocks of all sequences
    table_begins: Ints  # [B + 1]
    longest: int  # the largest number of cached and new rows
    seen: list[Bytes | None]  # [n, n] of each sequence: `ancestors` of trees; None: a chain

    @property
    def positions(self) -> Ints:
        """The position of each row in its sequence."""
        if len(self.owners) == len(self.past):  # one row of each
            return self.past
        return self.past[self.owners] + self.depths

    @property
    def slots(self) -> Ints:
        """The slot of the pool that each row is written into."""
        rows = self.past[self.owners] + self.places
        return self.table[self.table_begins[self.owners] + rows // BLOCK] * BLOCK + rows % BLOCK

    @property
    def back(self) -> Ints:
        """The row in attention of each row [T]."""
        return self.begins[self.owners] + self.places

    @property
    def spread(self) -> Ints:
        """The row of each row in attention [A]: the second of a single row is the row again."""
        rows = np.zeros(int(self.begins[-1]), np.int64)
        back = self.back
        rows[np.minimum(back + 1, len(rows) - 1)] = np.arange(len(back))
        rows[back] = np.arange(len(back))
        return rows

    @property
    def scored(self) -> Ints:
        """The rows whose logits are computed: the wanted ones, then perhaps the last of them again.

        If at least half of the rows are wanted, there are as many as rows. Drafts of one step and
        the next differ, and every other number of logits would cost the plugin another preparation.
        """
        count, rows = len(self.wanted), len(self.tokens)
        if not count:
            return _FIRST
        return self.wanted if 2 * count < rows else self.wanted[_repeated(count, rows)]

    def bias(self) -> tuple[Bytes, Ints]:
        """Return the matrices of the trees, one after the other, and where each begins [B + 1]."""
        found = [seen.reshape(-1) for seen in self.seen if seen is not None]
        if not found:
            return _NO_BIAS, np.zeros(len(self.past) + 1, np.int64)
        return np.concatenate(found), _sums([0 if s is None else s.size for s in self.seen])

    def padded(self, least: int) -> "Batch":
        """Return the batch with `least` rows or more, and as many wanted ones: the last repeats.

        The repeated rows do not enter attention.
        """
        rows = _repeated(len(self.tokens), least)
        return replace(
            self,
            tokens=self.tokens[rows],
            owners=self.owners[rows],
            places=self.places[rows],
            depths=self.depths[rows],
            wanted=self.wanted[_repeated(len(self.wanted), least)],
        )


def _repeated(count: int, least: int) -> Ints:
    """Return the indices of `count` rows, and the last one again until there are `least`."""
    return np.minimum(np.arange(max(count, least) if count else 0), count - 1)


def in_single_rows(parts: Sequence[Part], most: int) -> list[Part]:
    """Return the parts with the rows of chains of at most `most` rows as parts of their own.

    Paged attention writes the keys and values of all rows before a row attends, so a row of a chain
    sees the rows before it in the same call as if they had been cached. For a sequence with several
    new rows it repacks all its keys, which takes longer than a few rows do.
    """
    found: list[Part] = []
    for part in parts:
        count = len(part.tokens)
        if 1 < count <= most and part.tree is None:
            found += [part.piece(row, row + 1) for row in range(count)]
        else:
            found.append(part)
    return found


def lay_out(parts: Sequence[Part], least: int = 1) -> Batch:
    """Return the arrays of `parts`, which have `least` rows or more in attention.

    Lists become arrays at the end, since an array operation takes longer than a few rows in Python.
    """
    sizes = [len(part.tokens) for part in parts]
    owners, places, begins = _rows_of(tuple(sizes), least)
    firsts = list(accumulate(sizes, initial=0))
    tables = [p.cache.table(p.before + max(n, least)) for p, n in zip(parts, sizes, strict=True)]
    trees = [part.tree for part in parts]
    depth = places
    if any(tree is not None for tree in trees):
        depth = places.copy()
        for first, tree in zip(firsts, trees, strict=False):
            if tree is not None:
                depth[first : first + len(tree)] = depths(tree)
    past = [part.past for part in parts]
    wanted = [n + row for p, n in zip(parts, firsts, strict=False) for row in p.wanted.tolist()]
    return Batch(
        np.concatenate([part.tokens for part in parts]),
        owners,
        places,
        depth,
        np.array(wanted, np.int64),
        np.array(past),
        begins,
        np.array([block for table in tables for block in table], np.int64),
        _sums([len(table) for table in tables]),
        max(rows + max(n, least) for rows, n in zip(past, sizes, strict=True)),
        [None if tree is None else ancestors(tree) for tree in trees],
    )


@lru_cache(maxsize=256)
def _rows_of(sizes: tuple[int, ...], least: int) -> tuple[Ints, Ints, Ints]:
    """Return owners, places and begins of sequences with these rows; see `Batch`.

    They are the same in many steps, so they cannot be changed.
    """
    owners = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(owners)) - _sums(sizes)[owners]
    found = owners, places, _sums([max(n, least) for n in sizes])
    for array in found:
        array.setflags(write=False)
    return found


def _sums(counts: Sequence[int]) -> Ints:
    return np.array(list(accumulate(counts, initial=0)), np.int64)
