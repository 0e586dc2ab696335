"""The pool of KV blocks in random schedules: every row is that of its text, and no block leaks."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from specpipe.core.contracts import ROOT
from specpipe.core.engines import PoolFull
from specpipe.engine.openvino import prefixes
from specpipe.engine.openvino.blocks import BLOCK, BlockCache
from tests.helpers.block_pool import Bench, step_digests

LONGEST = 110  # tokens in a known text
MOST = 5  # sequences in flight


@dataclass
class Expected:
    """What the test knows of a cache: the kept tokens, and the rows of its last step."""

    kept: list[int]
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)

    def path(self, row: int) -> list[int]:
        """Return the rows above a row, and the row."""
        return [*self.path(self.parents[row]), row] if row != ROOT else []


class Schedule:
    """Random operations on a small pool, and their independent book-keeping."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(self.random.choice([4, 6, 9, 16]))
        self.live: list[tuple[BlockCache, Expected]] = []
        self.texts = [self.tokens(LONGEST) for _ in range(2)]  # few, so that sequences meet

    def run(self, operations: int) -> Counter[str]:
        """Do random operations, then release everything; return how often the pool did what."""
        ways = [self.open, self.step, self.step, self.keep, self.keep, self.keep, self.release]
        ways = [*ways * 2, self.fork, self.cut]
        for _ in range(operations):
            way = self.random.choice(ways) if self.live else self.open
            way()
            self.check()
        while self.live:
            self.release()
            self.check()
        pool, storage = self.bench.pool, self.bench.storage
        assert pool.used == 0
        return Counter(
            evicted=pool.evictions, found=pool.hits, copied=storage.copied, moved=storage.moved
        )

    def check(self) -> None:
        """Compare every live cache, and the users of all blocks, with what is expected."""
        rows = self.bench.storage.rows
        for cache, expected in self.live:
            self.bench.check(cache, expected.kept)
            step = rows[self.bench.slots(cache, len(expected.tokens))][cache.length :]
            wanted = step_digests(expected.kept, expected.tokens, expected.parents)
            assert step.tolist() == wanted
        used = len({block for cache, _ in self.live for block in cache.blocks})
        assert self.bench.pool.used == used
        assert self.bench.pool.free == len(rows) // BLOCK - used

    def open(self) -> None:
        if len(self.live) < MOST:
            asked = self.random.choice(self.texts)[: self.random.randint(0, LONGEST)]
            cache = self.bench.pool.open(asked)
            assert cache.length % BLOCK == 0 and cache.length <= max(0, len(asked) - 1)
            self.live.append((cache, Expected(asked[: cache.length])))

    def step(self) -> None:
        """Write chunks and trees; there is room for them if and only if `fits` is true."""
        some = self.random.sample(self.live, self.random.randint(1, len(self.live)))
        items = [(*pair, *self.draft(pair[1].kept)) for pair in some]
        fits = self.bench.pool.fits([(cache, len(tokens)) for cache, _, tokens, _ in items])
        assert fits == (len(list(self.written(items))) == len(items))

    def written(self, items) -> Iterator[None]:
        """Write one item after the other until the pool is full; yield for each."""
        for cache, expected, tokens, parents in items:
            before = list(cache.blocks)
            try:
                self.bench.write(cache, tokens, parents)
            except PoolFull:
                assert cache.blocks == before
                return
            expected.tokens, expected.parents = tokens, parents
            yield

    def draft(self, kept: list[int]) -> tuple[list[int], list[int]]:
        """Return a chain or a tree that continues a known text, if one begins with `kept`."""
        known = [text for text in self.texts if text[: len(kept)] == kept] or [[]]
        count = self.random.choice([1, 5, 20, 60])
        tokens = self.random.choice(known)[len(kept) : len(kept) + count] or self.tokens(count)
        parents = list(range(ROOT, len(tokens) - 1))
        for _ in range(self.random.choice([0, 0, 3])):  # side branches, anywhere
            row = self.random.randint(0, len(tokens))
            parents = [parent + (parent >= row) for parent in parents]
            parents.insert(row, self.random.randint(ROOT, row - 1))
            tokens.insert(row, self.random.choice([3, 4]))
        return tokens, parents

    def tokens(self, count: int) -> list[int]:
        return self.random.choices([1, 2], k=count)

    def keep(self) -> None:
        """Keep a path of a step: a row, often the last, and the rows above it."""
        cache, expected = self.random.choice(self.live)
        if expected.tokens:
            last = len(expected.tokens) - 1
            path = expected.path(self.random.choice([last, self.random.randint(0, last)]))
            cache.keep(np.array(path, np.int64))
            self.forget_step(expected, expected.kept + [expected.tokens[row] for row in path])

    def fork(self) -> None:
        cache, expected = self.random.choice(self.live)
        length = self.random.choice([None, self.random.randint(0, cache.length)])
        if len(self.live) < MOST:
            self.live.append((cache.fork(length), Expected(expected.kept[:length])))

    def cut(self) -> None:
        cache, expected = self.random.choice(self.live)
        length = self.random.randint(max(0, cache.length - 40), cache.length)
        cache.truncate(length)
        self.forget_step(expected, expected.kept[:length])

    def forget_step(self, expected: Expected, kept: list[int]) -> None:
        expected.kept, expected.tokens, expected.parents = kept, [], []

    def release(self) -> None:
        cache, _ = self.live.pop(self.random.randrange(len(self.live)))
        cache.release()


@pytest.mark.parametrize(
    "first",
    [0, 50, *(pytest.param(n, marks=pytest.mark.slow) for n in range(100, 400, 50))],
)
def test_every_row_is_that_of_its_text_in_random_schedules(first: int) -> None:
    done: Counter[str] = Counter()
    for seed in range(first, first + 50):
        done += Schedule(seed).run(100)
    assert all(done[what] for what in ("evicted", "found", "copied", "moved")), done


@pytest.mark.slow
@pytest.mark.parametrize("bits", [0, 2])
def test_colliding_hashes_change_no_row_in_random_schedules(bits: int, monkeypatch) -> None:
    honest = prefixes.digest

    def short(parent: bytes, tokens: bytes) -> bytes:
        return bytes([honest(parent, tokens)[0] % 2**bits])

    monkeypatch.setattr(prefixes, "digest", short)
    done: Counter[str] = Counter()
    for seed in range(100):
        done += Schedule(seed).run(100)
    assert done["found"] > 0


def test_a_pool_with_room_finds_every_prefix_that_was_kept() -> None:
    for seed in range(20):
        rng, bench, kept = random.Random(seed), Bench(100), set[tuple[int, ...]]()
        for _ in range(20):
            known = rng.choice(sorted(kept))[: rng.randint(0, 100)] if kept else ()
            tokens = (*known, *rng.choices([1, 2], k=rng.choice([1, 40])))
            starts = {text[:length] for text in kept for length in range(0, len(text) + 1, BLOCK)}
            cache = bench.pool.open(tokens)
            assert cache.length == max(
                (len(start) for start in starts if tokens[:-1][: len(start)] == start), default=0
            )
            bench.extend(cache, tokens[cache.length :])
            kept.add(tokens)
            cache.release()
