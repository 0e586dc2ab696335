"""Replays a proposer against recorded answers: the steps of serving, without the engines.

A replay runs in the batcher of serving, so drafts are limited and cut by the same budget. The
engines answer from the record, and the budget counts the measured costs instead of the clock's.
"""

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from specpipe.config.speculation import DraftModel, Hybrid, Speculation
from specpipe.core.contracts import (
    Asking,
    Draft,
    Extensions,
    Guesses,
    Ints,
    Logits,
    Proposer,
    Role,
    Sampling,
    Scores,
    score,
)
from specpipe.core.engines import Branch, EngineFacts, Item, LoadedEngine, PoolUsage
from specpipe.runtime.assembly import Runtime, make_proposer
from specpipe.runtime.batcher import Batcher
from specpipe.runtime.budget import Budget
from specpipe.speculate import accept
from specpipe.speculate.decode import Decoding, Finish, Step, propose_within
from specpipe.tune.cost import Costs
from specpipe.tune.growth import recorded
from specpipe.tune.trace import Trace


@dataclass
class Calls:
    """The calls of a round's drafters; one call serves all streams."""

    heads: int = 0
    draft: int = 0

    def clear(self) -> None:
        """Begin a new round."""
        self.heads = self.draft = 0


@dataclass(frozen=True)
class ReplayedStep:
    """One step that a stream would have taken."""

    rows: int  # the root and the draft
    depth: int  # of the draft
    emitted: int
    propose_ms: float  # of this thread's processor; heads and draft model answer from the record
    branched: bool = False  # the draft is no chain


@dataclass(frozen=True)
class ReplayedRound:
    """The steps of all streams in one call of the target."""

    steps: tuple[ReplayedStep, ...]
    head_calls: int = 0
    draft_calls: int = 0
    reads: bool = False  # a stream read its prompt
    padding: int = 0  # rows that nobody wants

    @property
    def rows(self) -> int:
        """The rows of the call."""
        return sum(step.rows for step in self.steps) + self.padding

    @property
    def emitted(self) -> int:
        """The tokens of all streams."""
        return sum(step.emitted for step in self.steps)


@dataclass
class PricedBudget(Budget):
    """The budget of serving, which is told the prices of `costs` instead of measured times.

    It may serve several replays of the same settings, as a server's budget serves many requests.
    """

    costs: Costs | None = None
    calls: Calls = field(default_factory=Calls)  # of the current round
    _round_ms: float = 0.0  # the price of the current round

    def note_step(self, rows: int, ms: float, drafts: int = 0, *, reads: bool = False) -> None:
        """Take note of the width of a step, not of the time of a recorded answer."""
        self._round_ms = float(self.cost.next(np.array([rows]))[0] + self.cost.drafts_ms(drafts))
        self.cost.last_rows = 0 if reads else rows
        self.afford_trials(float(self.cost(rows)))

    def note_drafting(self, depth: int, calls: int, ms: float) -> None:
        """Take note of the price of the current round's drafters."""
        if self.costs is not None:
            ms = self.costs.drafting_ms(self.calls.heads, calls - self.calls.heads)
            super().note_drafting(depth, calls, ms)
            self._round_ms += ms

    def note_reading(self, ms: float) -> None:
        """Take note of the price of a draft model's call with prompts: that of another call."""
        if self.costs is not None:
            super().note_reading(self.costs.drafting_ms(0, 1))

    def note_round(self, tokens: int, ms: float) -> None:
        """Take note of what a round emitted, and of its price."""
        super().note_round(tokens, self._round_ms)


def priced(costs: Costs) -> PricedBudget:
    """Return a new budget for steps of these prices."""
    return PricedBudget(costs.step.measured(costs.change_ms), costs=costs)


@dataclass(eq=False)
class _Rows:
    """A `Cache` of nothing but tokens; `number` is that of the trace."""

    number: int
    tokens: list[int] = field(default_factory=list)
    new: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def keep(self, rows: Ints) -> None:
        self.tokens += self.new[rows].tolist()

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def release(self) -> None:
        self.tokens.clear()


@dataclass
class _Recorded:
    """Stands for one engine (`LoadedEngine`), and answers from traces.

    A ReDrafter is called for real, since its answers depend on each other; the time is not counted.
    As draft model it knows only the target's answer: after a rejected draft token, the
    rest does not matter, because it cannot be accepted.
    """

    role: Role
    facts: EngineFacts
    traces: Sequence[Trace]
    target: LoadedEngine
    calls: Calls

    @property
    def pool_usage(self) -> PoolUsage:
        return PoolUsage()

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> _Rows:
        wanted = list(tokens)
        return _Rows(next(n for n, t in enumerate(self.traces) if t.begins_with(wanted)))

    def fits(self, items: Sequence[Item]) -> bool:
        return True

    def trim(self) -> None:
        pass

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Return the draft model's choices; of the target only the count of rows matters."""
        if self.role == "draft":
            self.calls.draft += 1
        return [self._scores(item) for item in items]

    def _scores(self, item: Item) -> Scores:
        assert isinstance(item.cache, _Rows)
        item.cache.new = item.tokens
        if self.role == "target" or not len(item.wanted):
            return Scores(np.zeros((len(item.wanted), 0), np.float32))
        trace = self.traces[item.cache.number]
        assert trace.draft is not None
        read = len(item.cache.tokens) + len(item.tokens) - len(trace.prompt)
        logits = np.zeros((1, self.facts.vocab_size), np.float32)
        logits[0, trace.draft[min(read, len(trace.output))]] = 1.0
        return Scores(logits)

    def guess(self, hidden: Logits) -> list[Guesses]:
        """Return the heads' guesses; the "hidden state" is a trace and a place in its answer."""
        self.calls.heads += 1
        return [self.traces[int(n)].guesses[int(place)] for n, place in hidden]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the drafter itself."""
        self.calls.heads += 1
        return self.target.extend(hidden, states, tokens)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Return the recorded predictions of an EAGLE-3 drafter."""
        self.calls.heads += 1
        found = []
        for branch in branches:
            assert isinstance(branch.cache, _Rows)
            trace = self.traces[branch.cache.number]
            known = trace.grown[len(branch.cache.tokens) - len(trace.prompt)]
            found.append(recorded(known, branch))
        return found


def replay(
    options: Speculation,
    traces: Sequence[Trace],
    deployment: Runtime,
    budget: PricedBudget,
    streams: int = 1,
) -> list[ReplayedRound]:
    """Return the rounds in which greedy decoding with `options` gives the answers of `traces`.

    `streams` of them run at a time, and the next one starts when one ends. Of `deployment` only the
    sizes count, and a ReDrafter if the method has one.

    Heads of a draft model are left out: they change how often it is called, not what it guesses, so
    the steps are right and their price is an upper bound.
    """
    if isinstance(options, DraftModel | Hybrid) and options.draft is not None:
        options = replace(options, draft=replace(options.draft, heads=None))
    engines: dict[Role, LoadedEngine] = {
        role: _Recorded(role, facts, traces, deployment.engines["target"], budget.calls)
        for role, facts in deployment.facts.items()
    }
    played = replace(deployment, engines=engines, speculation=options)
    batcher, rounds, waiting = played.batcher(budget), list[ReplayedRound](), [*enumerate(traces)]
    with _without_collection():
        while batcher.streams or waiting:
            while waiting and len(batcher.streams) < streams:
                proposer = make_proposer(options, played.facts)
                decoding = _Replaying(*waiting.pop(0), proposer)
                played.add(batcher, decoding.run())
            rounds.append(_round(batcher, budget))
    return [found for found in rounds if found.steps]


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage: a collection visits all objects of the process, and takes up to a second.

    It would count as time of the proposer that happens to be timed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _round(batcher: Batcher, budget: PricedBudget) -> ReplayedRound:
    budget.calls.clear()
    reads = any(not stream.decodes for stream in batcher.streams)
    steps = list[ReplayedStep]()
    for _, event in batcher.round():
        if isinstance(event, Exception):
            raise event
        if isinstance(event, Noted):
            steps.append(event.found)
    found = ReplayedRound(tuple(steps), budget.calls.heads, budget.calls.draft, reads)
    padding = 0 if reads else budget.cost.last_rows - found.rows
    return replace(found, padding=max(0, padding))


@dataclass(frozen=True)
class Noted(Step):
    """A step with what it would cost."""

    found: ReplayedStep = ReplayedStep(1, 0, 1, 0.0)


@dataclass
class _Replaying:
    """Decodes as `speculate.decode` does, with the recorded answer instead of logits."""

    number: int  # of the trace
    trace: Trace
    proposer: Proposer
    done: int = 0
    propose_ms: float = 0.0

    def run(self) -> Decoding:
        trace, proposer = self.trace, self.proposer
        proposer.start(trace.prompt, Sampling())
        total = len(trace.output)
        while self.done < total:
            self.propose_ms = 0.0
            draft = yield from self._timed(propose_within(proposer, total - self.done - 1))
            sequence = [*trace.prompt, *trace.output[: self.done]]
            scores = yield from score("target", sequence, draft)
            draft = draft if scores.kept is None else draft.only(scores.kept)
            verdict = accept.greedy(draft, partial(_answer, trace, self.done))
            proposer.observe(draft, self._seen(draft, verdict.rows), verdict)
            accepted = len(verdict.path)
            self.done += accepted + 1
            finish: Finish | None = "length" if self.done == total else None
            yield Noted(
                tuple(verdict.emitted(draft)), draft.depth, accepted, finish,
                found=self._note(draft, accepted + 1),
            )  # fmt: skip

    def _note(self, draft: Draft, emitted: int) -> ReplayedStep:
        branched = not bool((draft.parents == np.arange(-1, len(draft) - 1)).all())
        return ReplayedStep(1 + len(draft), draft.depth, emitted, self.propose_ms, branched)

    def _seen(self, draft: Draft, rows: Sequence[int]) -> Scores:
        """Return the recorded hidden states of accepted rows; without a drafter, their places."""
        stood, hidden = self.done + np.arange(len(rows)), self.trace.hidden
        places = np.stack([np.full(len(rows), self.number), stood], axis=1)
        seen = hidden[stood] if hidden is not None else places
        found = np.zeros((1 + len(draft), seen.shape[1]), np.float32)
        found[list(rows)] = seen
        return Scores(np.zeros((0, 0), np.float32), found)

    def _timed(self, asking: Asking[Draft]) -> Asking[Draft]:
        """Add up the time that a proposer itself computes, without that of the answers."""
        answer = None
        while True:
            began = time.thread_time_ns()  # other work on the machine is not the proposer's
            try:
                ask = asking.send(answer)  # type: ignore[arg-type]
            except StopIteration as end:
                draft: Draft = end.value
                return draft
            finally:
                self.propose_ms += (time.thread_time_ns() - began) / 1e6
            answer = yield ask


def _answer(trace: Trace, done: int, path: accept.Path) -> int:
    return trace.output[done + len(path)]
