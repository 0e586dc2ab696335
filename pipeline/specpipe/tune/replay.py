"""Replays a proposer against recorded answers: the steps of serving, without the engines.

A replay runs in the batcher of serving, so drafts are limited and cut by the same budget. The
engines answer from the record, and the budget counts the measured costs instead of the clock's.
"""

import time
from collections.abc import Sequence
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
from specpipe.core.errors import Unsupported
from specpipe.runtime.assembly import Runtime, make_proposer
from specpipe.runtime.batcher import finish
from specpipe.runtime.budget import Budget
from specpipe.speculate import accept
from specpipe.speculate.decode import Decoding, Step, propose_within
from specpipe.tune.cost import Costs
from specpipe.tune.trace import Trace


@dataclass
class Calls:
    """The calls of a step's drafters, and the proposer's own time."""

    heads: int = 0
    draft: int = 0
    propose_ms: float = 0.0


@dataclass(frozen=True)
class ReplayedStep:
    """One step that would have been taken."""

    rows: int  # the root and the draft
    depth: int  # of the draft
    emitted: int
    propose_ms: float  # the proposer's own time here; heads and draft model answer from the record
    head_calls: int = 0
    draft_calls: int = 0


@dataclass
class PricedBudget(Budget):
    """The budget of serving, which is told the prices of `costs` instead of measured times.

    It may serve several replays of the same settings, as a server's budget serves many requests.
    """

    costs: Costs | None = None
    calls: Calls = field(default_factory=Calls)  # of the current step

    def note_step(self, rows: int, ms: float) -> None:
        """Ignore the time of a recorded answer."""

    def note_drafting(self, ms: float) -> None:
        """Take note of the price of the current step's drafters."""
        if self.costs is not None:
            super().note_drafting(self.costs.drafting_ms(self.calls.heads, self.calls.draft))


def priced(costs: Costs) -> PricedBudget:
    """Return a new budget for steps of these prices."""
    return PricedBudget(costs.step.measured(), costs=costs)


@dataclass(eq=False)
class _Rows:
    """A `Cache` of nothing but tokens."""

    tokens: list[int]
    new: Ints = field(default_factory=lambda: np.zeros(0, np.int64))

    def keep(self, rows: Ints) -> None:
        self.tokens += self.new[rows].tolist()

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def release(self) -> None:
        self.tokens.clear()


@dataclass
class _Recorded:
    """Stands for one engine (`LoadedEngine`), and answers from a trace.

    A drafter is called for real, since its answers depend on each other; the time is not counted.
    As draft model it knows only the target's answer: after a rejected draft token, the
    rest does not matter, because it cannot be accepted.
    """

    role: Role
    facts: EngineFacts
    trace: Trace
    target: LoadedEngine
    calls: Calls

    @property
    def pool_usage(self) -> PoolUsage:
        return PoolUsage()

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> _Rows:
        return _Rows([])

    def fits(self, items: Sequence[Item]) -> bool:
        return True

    def trim(self) -> None:
        pass

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Return the draft model's choices; of the target only the count of rows matters."""
        return [self._scores(item) for item in items]

    def _scores(self, item: Item) -> Scores:
        assert isinstance(item.cache, _Rows)
        item.cache.new = item.tokens
        if self.role == "target" or not len(item.wanted):
            return Scores(np.zeros((len(item.wanted), 0), np.float32))
        assert self.trace.draft is not None
        self.calls.draft += 1
        read = len(item.cache.tokens) + len(item.tokens) - len(self.trace.prompt)
        logits = np.zeros((1, self.facts.vocab_size), np.float32)
        logits[0, self.trace.draft[min(read, len(self.trace.output))]] = 1.0
        return Scores(logits)

    def guess(self, hidden: Logits) -> list[Guesses]:
        """Return the heads' guesses; the "hidden state" is where in the answer we are."""
        self.calls.heads += 1
        return [self.trace.guesses[int(row[0])] for row in hidden]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the drafter itself."""
        self.calls.heads += 1
        return self.target.extend(hidden, states, tokens)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Refuse: `tune` tries no settings of a drafter that reads the target's caches."""
        raise Unsupported("a trace has no hidden states for an EAGLE-3 drafter")


def replay(
    options: Speculation, trace: Trace, deployment: Runtime, budget: PricedBudget
) -> list[ReplayedStep]:
    """Return the steps in which greedy decoding with `options` gives the trace's answer.

    Of `deployment` only the sizes count, and a drafter if the method has one.

    Heads of a draft model are left out: they change how often it is called, not what it guesses, so
    the steps are right and their price is an upper bound.
    """
    if isinstance(options, DraftModel | Hybrid) and options.draft is not None:
        options = replace(options, draft=replace(options.draft, heads=None))
    engines: dict[Role, LoadedEngine] = {
        role: _Recorded(role, facts, trace, deployment.engines["target"], budget.calls)
        for role, facts in deployment.facts.items()
    }
    recorded = replace(deployment, engines=engines, speculation=options)
    batcher, found = recorded.batcher(budget), list[ReplayedStep]()
    proposer = make_proposer(options, recorded.facts)
    stream = recorded.add(batcher, _decoding(proposer, trace, budget, found))
    for _ in finish(batcher, stream):
        pass
    return found


def _decoding(
    proposer: Proposer, trace: Trace, budget: PricedBudget, found: list[ReplayedStep]
) -> Decoding:
    """Decode as `speculate.decode` does, with the recorded answer instead of logits."""
    proposer.start(trace.prompt, Sampling())
    done, total, calls = 0, len(trace.output), budget.calls
    while done < total:
        calls.heads, calls.draft, calls.propose_ms = 0, 0, 0.0
        draft = yield from _timed(propose_within(proposer, total - done - 1), calls)
        sequence = [*trace.prompt, *trace.output[:done]]
        scores = yield from score("target", sequence, draft)
        draft = draft if scores.kept is None else draft.only(scores.kept)
        verdict = accept.greedy(draft, partial(_answer, trace, done))
        proposer.observe(draft, _seen(trace, done, draft, verdict.rows), verdict)
        accepted = len(verdict.path)
        done += accepted + 1
        found.append(_note(draft, accepted + 1, calls))
        emitted = tuple(verdict.emitted(draft))
        yield Step(emitted, draft.depth, accepted, "length" if done == total else None)


def _note(draft: Draft, emitted: int, calls: Calls) -> ReplayedStep:
    return ReplayedStep(
        1 + len(draft), draft.depth, emitted, calls.propose_ms, calls.heads, calls.draft
    )


def _answer(trace: Trace, done: int, path: accept.Path) -> int:
    return trace.output[done + len(path)]


def _seen(trace: Trace, done: int, draft: Draft, rows: Sequence[int]) -> Scores:
    """Return the recorded hidden states of accepted rows; without a drafter, their places."""
    stood = done + np.arange(len(rows))
    seen = trace.hidden[stood] if trace.hidden is not None else stood[:, None]
    hidden = np.zeros((1 + len(draft), seen.shape[1]), np.float32)
    hidden[list(rows)] = seen
    return Scores(np.zeros((0, 0), np.float32), hidden)


def _timed(asking: Asking[Draft], calls: Calls) -> Asking[Draft]:
    """Add up the time that a proposer itself takes, without that of the answers."""
    answer = None
    while True:
        began = time.perf_counter_ns()
        try:
            ask = asking.send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            draft: Draft = end.value
            return draft
        finally:
            calls.propose_ms += (time.perf_counter_ns() - began) / 1e6
        answer = yield ask
