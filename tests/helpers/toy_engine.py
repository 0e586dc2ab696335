"""A paged engine of a few lines: every logit depends on all rows that a token can see.

It uses the real block pool. A slot of its storage holds the token that was written there. The
distribution after a row follows from the tokens that are read through the block table, so a row
that is missing, stale, moved wrongly or of another sequence changes the answer.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from specpipe.core.contracts import ROOT, Extensions, Guesses, Ints, Scores
from specpipe.core.engines import Branch, EngineFacts, Item, PoolUsage
from specpipe.engine.openvino.blocks import BLOCK, BlockPool


class Tokens:
    """The storage: one token per slot."""

    def __init__(self, blocks: int) -> None:
        self.slots = np.full(blocks * BLOCK, -1, np.int64)

    def copy_block(self, source: int, target: int) -> None:
        rows = self.slots.reshape(-1, BLOCK)
        rows[target] = rows[source]

    def move_rows(self, source: Ints, target: Ints) -> None:
        self.slots[target] = self.slots[source].copy()


class ToyEngine:
    """See the module. `seed` makes another model; heads and drafter guess with `drafter_seed`."""

    def __init__(
        self,
        vocab_size: int = 7,
        blocks: int = 64,
        *,
        seed: int = 1,
        drafter_seed: int = 1,
        max_seq_len: int = 1000,
        prefix_cache: bool = True,
    ) -> None:
        self.facts = EngineFacts(vocab_size, max_seq_len)
        self.storage = Tokens(blocks)
        self.pool = BlockPool(blocks, self.storage, prefix_cache=prefix_cache)
        self.seed, self.drafter_seed = seed, drafter_seed
        self.steps: list[int] = []  # rows of every step

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> Any:
        return self.pool.open(tokens, salt)

    def fits(self, items: Sequence[Item]) -> bool:
        return self.pool.fits([(item.cache, len(item.tokens)) for item in items])  # type: ignore[misc]

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Write the rows of every item, then read the context of the wanted ones."""
        assert items and len({id(item.cache) for item in items}) == len(items)
        self.steps.append(sum(len(item.tokens) for item in items))
        for item in items:
            self.pool.reserve(item.cache, len(item.tokens))  # type: ignore[arg-type]
        places = [self._slots(item) for item in items]
        for item, slots in zip(items, places, strict=True):
            self.storage.slots[slots[item.cache.length :]] = item.tokens  # type: ignore[attr-defined]
            item.cache.written(item.tokens)  # type: ignore[attr-defined]
        return [self._read(item, slots) for item, slots in zip(items, places, strict=True)]

    def guess(self, hidden: Any) -> list[Guesses]:
        """Guess with three heads, from the last token."""
        seed = self.drafter_seed
        distributions = [
            np.stack([self.distribution([int(h[0]), k], seed) for k in range(3)]) for h in hidden
        ]
        best = [np.argsort(-rows, axis=1, kind="stable") for rows in distributions]
        pairs = zip(best, distributions, strict=True)
        return [Guesses(order, np.take_along_axis(rows, order, 1)) for order, rows in pairs]

    def extend(self, hidden: Any, states: Any, tokens: Ints) -> Extensions:
        """Guess from a path's last token; the state is that token."""
        distributions = np.stack([self.distribution([int(t)], self.drafter_seed) for t in tokens])
        best = np.argsort(-distributions, axis=1, kind="stable")
        states = tokens[:, None].astype(np.float32)
        return Extensions(best, np.take_along_axis(distributions, best, 1), states)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Guess from a path's last token; the state is that token."""
        found = []
        for b in branches:
            last = [b.root if n < 0 else int(b.draft.tokens[n]) for n in b.wanted.tolist()]
            found.append(self.extend(None, None, np.array(last)))
        return found

    @property
    def pool_usage(self) -> PoolUsage:
        pool = self.pool
        return PoolUsage(pool.used + pool.free, pool.used)

    def trim(self) -> None:
        pass

    def _slots(self, item: Item) -> Ints:
        cache: Any = item.cache
        table = np.array(cache.table(len(item.tokens)), np.int64)
        rows = np.arange(cache.length + len(item.tokens))
        slots: Ints = table[rows // BLOCK] * BLOCK + rows % BLOCK
        return slots

    def _read(self, item: Item, slots: Ints) -> Scores:
        cache: Any = item.cache
        count = len(item.tokens)
        parents = np.arange(-1, count - 1) if item.parents is None else item.parents
        logits, hidden = [], []
        for row in item.wanted.tolist():
            path, at = list[int](), row
            while at != ROOT:
                path.append(at)
                at = int(parents[at])
            seen = [*range(cache.length), *(cache.length + r for r in reversed(path))]
            context = self.storage.slots[slots[seen]]
            logits.append(np.log(self.distribution(context.tolist(), self.seed)))
            hidden.append([context[-1]])
        return Scores(np.array(logits, np.float32), np.array(hidden, np.float32))

    def distribution(self, context: Sequence[int], seed: int) -> Any:
        return _distribution(
            self.facts.vocab_size, seed, zlib.crc32(np.array(context, np.int64).tobytes())
        )


@functools.lru_cache(100_000)
def _distribution(vocab_size: int, seed: int, context: int) -> Any:
    weights = np.exp(2 * np.random.default_rng([seed, context]).normal(size=vocab_size))
    return weights / weights.sum()


class TimedEngine(ToyEngine):
    """Has a clock that a step advances by `row_ms` for each of its rows."""

    def __init__(self, row_ms: float) -> None:
        super().__init__()
        self.row_ms, self.now_ns = row_ms, 0

    def step(self, items: Sequence[Item]) -> list[Scores]:
        self.now_ns += int(1e6 * self.row_ms * sum(len(item.tokens) for item in items))
        return super().step(items)

    def clock(self) -> int:
        return self.now_ns
