"""Serves many sequences with one call per engine: collects what they ask, and answers together.

A *round* has two parts. First the drafters run: all asks for heads, a small drafter or a draft
model are grouped by engine and kind, and each group is one call, until every stream waits for the
target. Then the target runs once. Its step holds the root and the draft of every stream that
decodes, and chunks of prompts for as long as there is room among `max_num_tokens` rows.
`runtime.packing` decides which.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import (
    Allowance,
    Answer,
    Ask,
    Extend,
    Extensions,
    Guess,
    Predict,
    Role,
    Score,
    Scores,
)
from specpipe.core.engines import Branch, LoadedEngine, PoolFull
from specpipe.runtime.budget import Budget
from specpipe.runtime.lane import Lane
from specpipe.runtime.packing import CATCH_UP, Packer
from specpipe.runtime.stream import Counts, Stream
from specpipe.speculate.decode import ContextLogits, Decoding, Step

Event = Step | ContextLogits | Exception
Call = Callable[[list[Stream]], Sequence[Answer]]  # answers what each of some streams asks


@dataclass
class _Round:
    """What the current round emitted, and what it took."""

    events: list[tuple[Stream, Event]] = field(default_factory=list)
    depth: int = 0  # that the deepest draft may have
    drafting_calls: int = 0  # of drafters, but those in which a draft model read a prompt
    reading_ms: float = 0.0  # of calls in which a draft model read a prompt
    target_ms: float = 0.0
    reads: bool = False  # the target read a prompt


@dataclass
class Batcher:
    """See the module. Used from one thread."""

    engines: Mapping[Role, LoadedEngine]
    max_num_tokens: int
    budget: Budget
    streams: list[Stream] = field(default_factory=list)  # the oldest first
    counts: Counts = field(default_factory=Counts)
    _now: _Round = field(default_factory=_Round)

    def __post_init__(self) -> None:
        self._packer = Packer(
            self.engines, self.max_num_tokens, self.budget, self.streams, self.counts
        )
        self._calls: dict[type, Call] = {
            Guess: self._guess, Extend: self._extend, Predict: self._predict
        }  # fmt: skip

    def add(
        self,
        decoding: Decoding,
        *,
        adaptive: bool = True,
        max_concurrency: int | None = None,
        counted: bool = True,
        salt: str = "",
    ) -> Stream:
        """Take a new sequence; it starts in the next round.

        `adaptive` lets the budget shorten its drafts. With more than `max_concurrency` streams it
        drafts nothing. `counted` adds it to `counts`. Only sequences of the same `salt` share
        prefixes.
        """
        lanes = {role: Lane(engine, salt) for role, engine in self.engines.items()}
        forecast = self.budget.forecast(adaptive, max_concurrency)
        stream = Stream(decoding, lanes, forecast, counted)
        self.streams.append(stream)
        return stream

    def remove(self, stream: Stream) -> None:
        """End a sequence, wherever it is."""
        if stream in self.streams:
            self.streams.remove(stream)
            stream.close()

    def round(self) -> list[tuple[Stream, Event]]:
        """Run every engine as described above; return what the streams emitted.

        An exception ends its stream, as does a step with a finish reason.
        """
        self._now = _Round()
        decoding = [stream.forecast for stream in self.streams if stream.decodes]
        self.budget.begin(decoding, len(self.streams))
        began = time.perf_counter_ns()
        for stream in list(self.streams):
            if stream.ask is None:
                self._resume(stream, None)
        self._draft()
        waiting = [s for s in self.streams if s.scores("target")]
        self._score("target", waiting, chunks=True)
        self._note_round((time.perf_counter_ns() - began) / 1e6)
        for stream, event in self._now.events:
            if isinstance(event, Exception) or (isinstance(event, Step) and event.finish):
                self.remove(stream)
        return self._now.events

    def _note_round(self, ms: float) -> None:
        """Tell the budget what the round took, unless a prompt was read in it."""
        now = self._now
        if now.reading_ms:
            self.budget.note_reading(now.reading_ms)
        if now.reads:
            return
        if now.drafting_calls or not now.reading_ms:
            drafting_ms = ms - now.target_ms - now.reading_ms
            self.budget.note_drafting(now.depth, now.drafting_calls, drafting_ms)
        if not now.reading_ms:
            self.budget.note_round(_emitted(now.events), ms)

    def _resume(self, stream: Stream, answer: Answer | None) -> None:
        """Continue an algorithm up to what it asks or emits next."""
        stream.ask = None
        try:
            said = stream.decoding.send(answer)
            while isinstance(said, Allowance):
                allowed = self._allow(stream, said.limit)
                self._now.depth = max(self._now.depth, allowed)
                said = stream.decoding.send(allowed)
        except StopIteration:
            self.remove(stream)
            return
        except Exception as error:
            self._fail(stream, error)
            return
        if isinstance(said, Step | ContextLogits):
            if isinstance(said, Step):
                stream.decodes = True
                self.budget.learn(stream.forecast, said)
            self._now.events.append((stream, said))
        else:
            stream.ask = said

    def _allow(self, stream: Stream, limit: int) -> int:
        """Return how deep a stream may draft.

        Its first token does not wait for a draft, for which a draft model would read the prompt.
        """
        if not stream.decodes:
            return 0
        return self.budget.allow(stream.forecast, limit)

    def _fail(self, stream: Stream, error: Exception) -> None:
        stream.ask = None
        self._now.events.append((stream, error))
        if stream in self.streams:
            self.remove(stream)

    # --- drafters -------------------------------------------------------------------------------

    def _draft(self) -> None:
        """Answer every ask but those for the target's logits."""
        chunks = True
        while groups := self._groups():
            streams = groups[min(groups, key=_cost_of_kind)]
            kind, role = type(streams[0].ask), _role_of(streams[0].ask)
            if kind is Score:
                if not self._score(role, streams, chunks=chunks):
                    break  # all of them still read their prompt
                chunks = False
            else:
                self._answer_all(streams, self._calls[kind])

    def _groups(self) -> dict[tuple[type, Role], list[Stream]]:
        found: dict[tuple[type, Role], list[Stream]] = {}
        for stream in self.streams:
            if stream.ask is not None and not stream.scores("target"):
                key = type(stream.ask), _role_of(stream.ask)
                found.setdefault(key, []).append(stream)
        return found

    def _answer_all(self, streams: Sequence[Stream], call: Call) -> None:
        self._now.drafting_calls += 1
        try:
            answers = call(list(streams))
        except Exception as error:
            for stream in streams:
                self._fail(stream, error)
            return
        for stream, answer in zip(streams, answers, strict=True):
            self._resume(stream, answer)

    def _guess(self, streams: list[Stream]) -> Sequence[Answer]:
        asks = [s.ask for s in streams if isinstance(s.ask, Guess)]
        return self.engines[asks[0].role].guess(np.stack([ask.hidden for ask in asks]))

    def _extend(self, streams: list[Stream]) -> Sequence[Answer]:
        asks = [s.ask for s in streams if isinstance(s.ask, Extend)]
        counts = [len(ask.tokens) for ask in asks]
        found = self.engines[asks[0].role].extend(
            np.repeat(np.stack([ask.hidden for ask in asks]), counts, axis=0),
            np.concatenate([ask.states for ask in asks]),
            np.concatenate([ask.tokens for ask in asks]),
        )
        ends = np.cumsum(counts)
        parts = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        return [Extensions(found.tokens[p], found.probs[p], found.states[p]) for p in parts]

    def _predict(self, streams: list[Stream]) -> Sequence[Answer]:
        """Answer with no predictions where rows of the target are missing, or there is no room."""
        asks = [(n, s, s.ask) for n, s in enumerate(streams) if isinstance(s.ask, Predict)]
        made = {n: branch for n, s, ask in asks if (branch := _branch(s.lanes[ask.role], ask))}
        try:
            found = self.engines[asks[0][2].role].predict(list(made.values())) if made else []
        except PoolFull:
            return [_no_predictions(ask) for _, _, ask in asks]
        answers = dict(zip(made, found, strict=True))
        return [answers.get(n) or _no_predictions(ask) for n, _, ask in asks]

    # --- scoring --------------------------------------------------------------------------------

    def _score(self, role: Role, streams: Sequence[Stream], *, chunks: bool) -> bool:
        """Run one step for streams that wait for logits; tell whether any was answered."""
        engine = self.engines[role]
        try:
            planned = self._packer.pack(role, streams, chunks=chunks)
            if not planned:
                return False
            began = time.perf_counter_ns()
            found = engine.step([p.item for p in planned])
            took_ms = (time.perf_counter_ns() - began) / 1e6
        except Exception as error:
            for stream in streams:
                self._fail(stream, error)
            return False
        reads = any(len(p.stream.lanes[role].pending) > CATCH_UP for p in planned)
        if role == "target":
            self._now.target_ms, self._now.reads = took_ms, reads
            drafts = sum(len(p.item.wanted) > 1 for p in planned)
            rows = sum(len(p.item.tokens) for p in planned)
            self.budget.note_step(rows, took_ms, drafts, reads=reads)
            counted = [len(p.item.tokens) for p in planned if p.stream.counted]
            self.counts.steps += bool(counted)
            self.counts.rows += sum(counted)
        elif reads:
            self._now.reading_ms += took_ms
        else:
            self._now.drafting_calls += 1
        answered = False
        for plan, scores in zip(planned, found, strict=True):
            plan.stream.lanes[role].done(plan.item)
            if len(plan.item.wanted):
                answered = True
                self._resume(plan.stream, Scores(scores.logits, scores.hidden, plan.kept))
        return answered


def _emitted(events: Sequence[tuple[Stream, Event]]) -> int:
    return sum(len(event.tokens) for _, event in events if isinstance(event, Step))


def alone(batcher: Batcher, decoding: Decoding) -> Iterator[Step | ContextLogits]:
    """Decode one sequence on its own; raises what its algorithm raises."""
    return finish(batcher, batcher.add(decoding))


def finish(batcher: Batcher, stream: Stream) -> Iterator[Step | ContextLogits]:
    """Run rounds until a stream ends, and yield its events; raises what its algorithm raises."""
    try:
        while stream in batcher.streams:
            for owner, event in batcher.round():
                if owner is not stream:
                    continue
                if isinstance(event, Exception):
                    raise event
                yield event
    finally:
        batcher.remove(stream)


def _role_of(ask: Ask | None) -> Role:
    assert isinstance(ask, Score | Guess | Extend | Predict)
    return ask.role


def _branch(lane: Lane, ask: Predict) -> Branch | None:
    """Return the draft to predict for; None if the target's rows before the root are missing."""
    if lane.cache is None:
        return None
    lane.follow(ask.tokens)
    if len(lane.pending) > 1:
        return None
    return Branch(lane.cache, lane.pending[0], ask.draft, ask.states, ask.wanted)


def _no_predictions(ask: Predict) -> Extensions:
    none = np.zeros((0, 0))
    return Extensions(none.astype(np.int64), none, none.astype(np.float32))


def _cost_of_kind(key: tuple[type, Role]) -> int:
    """Order the kinds of asks: heads and other small drafters run before a draft model."""
    return [Guess, Extend, Predict, Score].index(key[0])
