"""Many requests, one engine: a queue, a few slots, and turns of a few steps each.

The engine belongs to one thread, the scheduler's. Requests are admitted in order of arrival; the
sequences in the slots take turns, so that a long answer does not starve a short one. In a round
every sequence that decodes has a turn, and one of those that still read their prompt reads a chunk:
however many long prompts arrive, a stream waits for one chunk a round.

No request can end the thread: what listeners raise is logged, or fails their own request.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from specpipe.assembly import Slot
from specpipe.contracts import Logits
from specpipe.repository.models.exchange import PROBE_ID, Counters, Heartbeat, Request
from specpipe.repository.models.failures import EngineError, QueueFull
from specpipe.repository.models.guards import harmless, start_vital_thread
from specpipe.speculate.decode import Prefilled, Step

log = logging.getLogger("specpipe")

STEPS_PER_TURN = 4  # a change of sequence costs the engine some milliseconds
MOST_PROBES = 16
SWEEP_NS = 100_000_000  # how often the queue is searched for requests that were given up


class Listener(Protocol):
    """Whoever waits for a request's tokens; called from the scheduler's thread."""

    def is_cancelled(self) -> bool:
        """Tell whether nobody wants the answer any more."""
        ...

    def on_logits(self, rows: Logits) -> None:
        """Take the logits [n, V] after the next tokens of the prompt, if the request wants them."""

    def on_step(self, step: Step, counters: Counters) -> None:
        """Take one step's tokens; the last one has a finish reason."""

    def on_stopped(self, counters: Counters) -> None:
        """The request was stopped on demand, without further tokens."""

    def on_cancelled(self) -> None:
        """The request was given up."""

    def on_error(self, error: Exception) -> None:
        """The request failed; others go on."""


@dataclass(eq=False)
class _Session:
    request: Request
    listener: Listener
    counters: Counters
    stop: bool = False
    slot: Slot | None = None
    events: Iterator[Step | Prefilled] | None = None

    @property
    def reads(self) -> bool:
        """Whether nothing was emitted yet."""
        return self.counters.steps == 0

    def is_gone(self) -> bool:
        """Whether nobody waits for an answer; a listener that cannot tell is gone."""
        try:
            return self.stop or self.listener.is_cancelled()
        except Exception as error:
            log.error("a listener failed", exc_info=error)
            return True

    def end(self) -> None:
        """Tell the listener that the request was stopped or given up."""
        if self.stop:
            harmless(self.listener.on_stopped, self.counters)
        else:
            harmless(self.listener.on_cancelled)


@dataclass
class Scheduler:
    """See the module. `start` begins the thread, `close` ends it and every request.

    `observe` is called with every step of every request, `rest` when none is left, both from the
    scheduler's thread.
    """

    slots: Sequence[Slot]
    max_queue_size: int
    observe: Callable[[Step], None] = lambda step: None
    rest: Callable[[], None] = lambda: None
    _waiting: deque[_Session] = field(default_factory=deque)
    _active: list[_Session] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _last_sweep_ns: int = 0
    _probes: list[Callable[[Heartbeat], None]] = field(default_factory=list)
    _rounds: int = 0
    _counts: bool = True  # no step failed to be counted yet
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that owns the engine."""
        self._free = list(self.slots)
        self._thread = start_vital_thread(self._run, "scheduler")

    def submit(self, request: Request, listener: Listener) -> None:
        """Queue a request; raises QueueFull instead of letting it wait without bound.

        Raises EngineError after `close`.
        """
        session = _Session(request, listener, Counters(time.monotonic_ns()))
        with self._changed:
            if self._closing:
                raise EngineError("UNAVAILABLE", "the server is ending")
            waiting = len(self._active) + len(self._waiting) - len(self.slots)
            if waiting >= self.max_queue_size:
                raise QueueFull(waiting)
            self._waiting.append(session)
            self._changed.notify()

    def stop(self, request_id: str) -> bool:
        """End a request at its next step; tells whether it was there."""
        with self._changed:
            found = [
                s for s in (*self._active, *self._waiting) if s.request.request_id == request_id
            ]
            for session in found:
                session.stop = True
            self._changed.notify()
        return bool(found)

    def probe(self, answer: Callable[[Heartbeat], None]) -> None:
        """Have `answer` called by the scheduler's thread as soon as it comes to it.

        Raises EngineError if the queue for that is full, so that the thread would stand still.
        """
        with self._changed:
            if len(self._probes) >= MOST_PROBES:
                raise EngineError("UNAVAILABLE", "the engine's thread does not answer")
            self._probes.append(answer)
            self._changed.notify()

    def close(self) -> None:
        """End every request and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._rounds += 1
            reader = next((s for s in self._active if s.reads), None)
            for session in list(self._active):
                if session.is_gone():
                    session.end()
                    self._release(session)
                elif session.reads and session is not reader:
                    continue
                elif not self._turn(session):
                    self._release(session)
            if not self._active:
                harmless(self.rest)
            if reader in self._active:
                with self._changed:  # next time it is another's turn to read
                    self._active.remove(reader)
                    self._active.append(reader)

    def _admit(self) -> bool:
        """Fill the free slots from the queue; waits while there is nothing to do."""
        with self._changed:
            while not (self._active or self._waiting or self._probes or self._closing):
                self._changed.wait()
            gone = self._sweep()
            while self._waiting and self._free:
                session = self._waiting.popleft()
                session.slot = self._free.pop()
                self._active.append(session)
            heartbeat = Heartbeat(self._rounds, len(self._active), len(self._waiting))
            probes, self._probes = self._probes, []
        for session in gone:
            session.end()
        for answer in probes:
            harmless(answer, heartbeat)
        return not self._closing

    def _sweep(self) -> list[_Session]:
        """Take out of the queue what nobody waits for; at the end, everything."""
        now = time.monotonic_ns()
        if self._closing:
            gone = [*self._active, *self._waiting]
        elif self._free or now - self._last_sweep_ns < SWEEP_NS:
            gone = []
        else:
            self._last_sweep_ns = now
            gone = [s for s in self._waiting if s.is_gone()]
        self._waiting = deque(s for s in self._waiting if s not in gone)
        return gone

    def _turn(self, session: _Session) -> bool:
        """Give a session one chunk of its prompt, or its steps; tells whether it goes on."""
        try:
            for _ in range(STEPS_PER_TURN):
                event = next(self._events(session))
                if isinstance(event, Prefilled):
                    if event.logits is not None:
                        session.listener.on_logits(event.logits)
                    return True
                self._take(session, event)
                if event.finish is not None:
                    return False
                if session.is_gone():
                    session.end()
                    return False
        except Exception as error:
            harmless(session.listener.on_error, error)
            return False
        return True

    def _events(self, session: _Session) -> Iterator[Step | Prefilled]:
        if session.events is None:
            session.events = self._begin(session)
        return session.events

    def _begin(self, session: _Session) -> Iterator[Step | Prefilled]:
        request = session.request
        session.counters.first_scheduled_ns = time.monotonic_ns()
        assert session.slot is not None
        events = session.slot.events(
            request.prompt,
            request.sampling,
            request.limits,
            request.num_draft_tokens,
            log_probs=request.log_probs,
            running=lambda: len(self._active),
        )
        if request.context_logits:
            return chain(session.slot.context(request.prompt), events)
        return events

    def _take(self, session: _Session, step: Step) -> None:
        session.counters.add(step)
        try:
            if session.request.request_id != PROBE_ID:
                self.observe(step)
        except Exception as error:
            if self._counts:
                log.error(
                    "a step was not counted; further ones that are not go unsaid", exc_info=error
                )
            self._counts = False
        session.listener.on_step(step, session.counters)

    def _release(self, session: _Session) -> None:
        with self._changed:
            self._active.remove(session)
            if session.slot is not None:
                self._free.append(session.slot)
        session.events = session.slot = None
