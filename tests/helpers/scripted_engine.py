"""A `LoadedEngine` with scripted logits that enforces the rules of engines and caches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Extensions, Guesses, Ints, Logits, Predict, Scores
from specpipe.core.engines import Branch, EngineFacts, Item, LoadedEngine, PoolFull, PoolUsage
from specpipe.runtime.lane import Lane
from tests.helpers.scripted_model import Distribution, ScriptedModel, paths_of


class ProtocolError(Exception):
    """A caller broke a rule of `LoadedEngine` or `Cache`."""


def _require(ok: bool, rule: str) -> None:
    if not ok:
        raise ProtocolError(rule)


@dataclass(eq=False)
class ScriptedCache:
    """The rows of one sequence; see `contracts.Cache`."""

    engine: "ScriptedEngine"
    tokens: list[int]
    last: tuple[Ints, Ints] | None = None  # tokens and parents of the rows of the last step
    released: bool = False

    @property
    def rows(self) -> int:
        """Count the rows that it occupies."""
        return len(self.tokens) + (0 if self.last is None else len(self.last[0]))

    def keep(self, rows: Ints) -> None:
        """Keep rows of the last step, which must be one path."""
        _require(not self.released, "keep: the cache was released")
        _require(self.last is not None, "keep: no rows were written since the last keep")
        assert self.last is not None
        (tokens, parents), self.last, at = self.last, None, ROOT
        for row in rows.tolist():
            _require(0 <= row < len(tokens), f"keep: row {row} was not written")
            _require(parents[row] == at, f"keep: row {row} does not follow row {at}")
            self.tokens.append(int(tokens[row]))
            at = row

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on, and those of the last step."""
        _require(not self.released, "truncate: the cache was released")
        _require(0 <= length <= len(self.tokens), f"truncate: there is no row {length}")
        del self.tokens[length:]
        self.last = None

    def release(self) -> None:
        """Give the rows back; the engine can find them again."""
        _require(not self.released, "release: the cache was released before")
        self.released = True
        self.engine.live.remove(self)
        self.engine.known.append(tuple(self.tokens))


@dataclass(eq=False)
class ScriptedEngine:
    """A `LoadedEngine` that computes logits from a distribution, with a pool of `pool` rows.

    It finds known prefixes in multiples of `block` tokens.
    """

    distribution: Distribution
    vocab_size: int
    max_seq_len: int = 10_000
    heads: Distribution | None = None
    pool: int = 1_000_000
    block: int = 1
    live: list[ScriptedCache] = field(default_factory=list)  # the caches that were not released
    known: list[tuple[int, ...]] = field(default_factory=list)  # sequences of released caches
    steps: list[list[Item]] = field(default_factory=list)  # the items of every step
    guesses: list[int] = field(default_factory=list)  # hidden states in each call of `guess`
    extensions: list[int] = field(default_factory=list)  # paths in each call of `extend`
    predictions: list[int] = field(default_factory=list)  # drafts in each call of `predict`
    trimmed: int = 0

    @property
    def facts(self) -> EngineFacts:
        """The sizes of the engine."""
        return EngineFacts(self.vocab_size, self.max_seq_len)

    @property
    def model(self) -> ScriptedModel:
        """The model that answers for the engine."""
        return ScriptedModel(self.distribution, self.heads)

    @property
    def rows(self) -> list[int]:
        """Count the rows of every step."""
        return [sum(len(item.tokens) for item in items) for items in self.steps]

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> ScriptedCache:
        """Return a sequence that keeps the longest known prefix of `tokens`."""
        common = max((_common(known, tokens) for known in self.known), default=0)
        common = min(common, max(0, len(tokens) - 1)) // self.block * self.block
        self.live.append(ScriptedCache(self, list(tokens[:common])))
        return self.live[-1]

    def fits(self, items: Sequence[Item]) -> bool:
        """Tell whether the pool has room for the new rows."""
        running = {id(item.cache) for item in items}
        held = sum(len(c.tokens) if id(c) in running else c.rows for c in self.live)
        return held + sum(len(item.tokens) for item in items) <= self.pool

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Run the items; each must be of another live cache of this engine."""
        _require(bool(items), "step: there is no item")
        _require(len({id(i.cache) for i in items}) == len(items), "step: a cache occurs twice")
        if not self.fits(items):
            raise PoolFull(f"{self.pool} rows are too few")
        self.steps.append(list(items))
        return [self._run(item) for item in items]

    def _run(self, item: Item) -> Scores:
        cache, count = item.cache, len(item.tokens)
        assert isinstance(cache, ScriptedCache)
        _require(cache in self.live, "step: the cache was released or is of another engine")
        parents = np.arange(-1, count - 1) if item.parents is None else item.parents
        _require(count > 0 and len(parents) == count, "step: an item needs tokens with parents")
        below = (parents >= ROOT) & (parents < np.arange(count))
        _require(bool(below.all()), "step: a parent must come before its children")
        _require(set(item.wanted.tolist()) <= set(range(count)), "step: a wanted row is missing")
        paths = [[*cache.tokens, *path] for path in paths_of(item.tokens, parents)]
        _require(max(map(len, paths)) <= self.max_seq_len, "step: the sequence is too long")
        cache.last = item.tokens, parents
        if not len(item.wanted):
            none = np.zeros((0, self.vocab_size), np.float32)
            return Scores(none, np.zeros((0, 2), np.float32))
        return self.model.rows([paths[row] for row in item.wanted.tolist()])

    def guess(self, hidden: Logits) -> list[Guesses]:
        """Run the heads on hidden states [B, D]."""
        self.guesses.append(len(hidden))
        return [self.model.guess(row) for row in hidden]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the recurrent drafter on paths."""
        _require(len(hidden) == len(states) == len(tokens), "extend: lengths differ")
        self.extensions.append(len(tokens))
        return self.model.extend(hidden, states, tokens)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Run the one-layer drafter; each cache is a live one of this engine."""
        self.predictions.append(len(branches))
        found = []
        for b in branches:
            assert isinstance(b.cache, ScriptedCache)
            _require(b.cache in self.live, "predict: the cache was released or is of another")
            tokens = [*b.cache.tokens, b.root]
            found.append(self.model.predict(Predict("target", tokens, b.draft, b.states, b.wanted)))
        return found

    @property
    def pool_usage(self) -> PoolUsage:
        return PoolUsage()

    def trim(self) -> None:
        """Count the calls."""
        self.trimmed += 1


def _common(known: Sequence[int], tokens: Sequence[int]) -> int:
    same = (a == b for a, b in zip(known, tokens, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(known), len(tokens)))


@dataclass
class ServedModel:
    """The model of an engine; its rows follow the sequence in a lane."""

    engine: LoadedEngine

    def __post_init__(self) -> None:
        self.lane = Lane(self.engine)

    def score(self, tokens: Sequence[int], draft: Draft) -> Scores:
        """Run one step of the pending tokens and the draft."""
        self.lane.follow(tokens)
        item = self.lane.whole(draft)
        (scores,) = self.engine.step([item])
        self.lane.done(item)
        return scores

    def guess(self, hidden: Logits) -> Guesses:
        """Run the heads."""
        return self.engine.guess(hidden[None])[0]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the drafter."""
        return self.engine.extend(np.repeat(hidden[None], len(tokens), axis=0), states, tokens)

    def predict(self, ask: Predict) -> Extensions:
        """Run the drafter on the rows that the lane keeps."""
        self.lane.follow(ask.tokens)
        assert self.lane.cache is not None
        branch = Branch(self.lane.cache, ask.tokens[-1], ask.draft, ask.states, ask.wanted)
        return self.engine.predict([branch])[0]
