"""The rows of one stream in one engine: they follow the sequence that the algorithm names.

A lane compares the named sequence with the rows that it keeps. Rows of an accepted draft are found
among those of the last step and kept, rows of other tokens are dropped, and the tokens without rows
are *pending*: they run in the next steps. So accepting, rewinding, switching to another sequence
and resuming after a preemption are one operation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Ints
from specpipe.core.engines import Cache, Item, LoadedEngine
from specpipe.speculate.history import History

_NOTHING: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of the last step, which lie after the kept ones."""

    tokens: Sequence[int]
    parents: Sequence[int]  # of each row; ROOT: the end of the kept rows

    def path(self, tokens: Sequence[int]) -> list[int]:
        """Return the rows that follow `tokens` down the tree, for as long as there are any."""
        below: dict[tuple[int, int], int] = {}
        for row, place in enumerate(zip(self.parents, self.tokens, strict=True)):
            below.setdefault(place, row)
        rows, at = list[int](), ROOT
        for token in tokens:
            found = below.get((at, token))
            if found is None:
                break
            at = found
            rows.append(at)
        return rows


@dataclass(eq=False)
class Lane:
    """See the module. `follow` first; then `chunk` or `whole`; after the step, `done`."""

    engine: LoadedEngine
    salt: str = ""  # only lanes of the same salt share prefixes
    cache: Cache | None = None
    pending: list[int] = field(default_factory=list)  # tokens without rows; the last is the root
    preempted: bool = False  # it gave its rows back, and waits for room for all of its tokens
    _kept: list[int] = field(default_factory=list)
    _rows: _Rows | None = None
    _followed: History | None = None  # what the kept rows are the first tokens of

    def follow(self, tokens: Sequence[int]) -> None:
        """Keep the rows that belong to `tokens`, and find the pending ones."""
        limit = len(tokens) - 1
        if self.cache is None:
            self.cache = self.engine.open(tokens, self.salt)
            self._kept = list(tokens[: len(self.cache.tokens)])
        if tokens is self._followed:  # it has only become longer
            common = min(len(self._kept), limit)
        else:
            common = _common(self._kept, tokens, limit)
            self._followed = tokens if isinstance(tokens, History) else None
        if common < len(self._kept):
            self.cache.truncate(common)
            del self._kept[common:]
        elif self._rows is not None:
            self._keep(self._rows.path(tokens[common:limit]), tokens)
        self._rows = None
        self.pending = list(tokens[len(self._kept) :])

    def chunk(self, count: int) -> Item:
        """Return the item of the first `count` pending tokens; none of their logits is wanted."""
        assert self.cache is not None and count <= len(self.pending)
        return Item(self.cache, np.array(self.pending[:count], np.int64), None, _NOTHING)

    def whole(self, draft: Draft) -> Item:
        """Return the item of all pending tokens and the draft; root and draft are wanted."""
        assert self.cache is not None
        first = len(self.pending) - 1
        tokens = np.array(self.pending, np.int64)
        if not len(draft):
            return Item(self.cache, tokens, None, np.array([first]))
        tokens = np.concatenate([tokens, draft.tokens])
        shifted = np.where(draft.parents == ROOT, first, draft.parents + first + 1)
        parents = np.concatenate([np.arange(-1, first), shifted])
        chain = bool((parents == np.arange(-1, len(parents) - 1)).all())
        return Item(self.cache, tokens, None if chain else parents, np.arange(first, len(tokens)))

    def done(self, item: Item) -> None:
        """Take note of a step: the rows of a chunk are kept, those of a whole item may be later."""
        assert self.cache is not None
        count = len(item.tokens)
        if len(item.wanted):
            chain = range(-1, count - 1)
            parents = chain if item.parents is None else item.parents.tolist()
            self._rows = _Rows(item.tokens.tolist(), parents)
            return
        self.cache.keep(np.arange(count))
        self._kept += self.pending[:count]
        del self.pending[:count]

    def release(self) -> None:
        """Give the rows back. The next `follow` starts from the prefix that is still known."""
        if self.cache is not None:
            self.cache.release()
        self.cache, self._rows = None, None
        self._kept, self.pending = [], []

    @property
    def holds_rows(self) -> bool:
        """Whether the engine keeps rows for this stream."""
        return self.cache is not None and bool(self._kept or self._rows)

    def _keep(self, rows: list[int], tokens: Sequence[int]) -> None:
        if rows and self.cache is not None:
            begin = len(self._kept)
            self.cache.keep(np.array(rows, np.int64))
            self._kept += tokens[begin : begin + len(rows)]


def _common(kept: list[int], tokens: Sequence[int], limit: int) -> int:
    """Return the length of the common prefix, at most `limit`."""
    length = min(len(kept), limit)
    ours, theirs = kept[:length], list(tokens[:length])
    if ours == theirs:
        return length
    return next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
