"""Many requests, one engine: a queue, a few slots, and turns of a few steps each.

The engine belongs to one thread, the scheduler's. Requests are admitted in order of arrival; the
sequences in the slots take turns, so that a long answer does not starve a short one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from specpipe.assembly import Slot
from specpipe.repository.models.exchange import Counters, Request
from specpipe.repository.models.failures import QueueFull
from specpipe.speculate.decode import Step

STEPS_PER_TURN = 4  # a change of sequence costs the engine some milliseconds
SWEEP_NS = 100_000_000  # how often the queue is searched for requests that were given up


class Listener(Protocol):
    """Whoever waits for a request's tokens; called from the scheduler's thread."""

    def is_cancelled(self) -> bool:
        """Tell whether nobody wants the answer any more."""
        ...

    def on_step(self, step: Step, counters: Counters) -> None:
        """Take one step's tokens; the last one has a finish reason."""

    def on_stopped(self, counters: Counters) -> None:
        """The request was stopped on demand, without further tokens."""

    def on_cancelled(self) -> None:
        """The request was given up."""

    def on_error(self, error: Exception) -> None:
        """The request failed; others go on."""


@dataclass
class _Session:
    request: Request
    listener: Listener
    counters: Counters
    stop: bool = False
    slot: Slot | None = None
    steps: Iterator[Step] | None = None


@dataclass
class Scheduler:
    """See the module. `start` begins the thread, `close` ends it and every request.

    `observe` is called with every step of every request, from the scheduler's thread.
    """

    slots: Sequence[Slot]
    max_queue_size: int
    observe: Callable[[Step], None] = lambda step: None
    _waiting: deque[_Session] = field(default_factory=deque)
    _active: list[_Session] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _last_sweep_ns: int = 0
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that owns the engine."""
        self._free = list(self.slots)
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> None:
        """Queue a request; raises QueueFull instead of letting it wait without bound."""
        session = _Session(request, listener, Counters(time.monotonic_ns()))
        with self._changed:
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

    def close(self) -> None:
        """End every request and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._admit():
            for session in list(self._active):
                if not self._turn(session):
                    self._release(session)

    def _admit(self) -> bool:
        """Fill the free slots from the queue; waits while there is nothing to do."""
        with self._changed:
            while not (self._active or self._waiting or self._closing):
                self._changed.wait()
            gone = self._sweep()
            while self._waiting and self._free:
                session = self._waiting.popleft()
                session.slot = self._free.pop()
                self._active.append(session)
        for session in gone:
            if session.stop:
                session.listener.on_stopped(session.counters)
            else:
                session.listener.on_cancelled()
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
            gone = [s for s in self._waiting if s.stop or s.listener.is_cancelled()]
        self._waiting = deque(s for s in self._waiting if s not in gone)
        return gone

    def _turn(self, session: _Session) -> bool:
        """Give a session its steps; tells whether it goes on."""
        try:
            if session.steps is None:
                session.steps = self._begin(session)
            for _ in range(STEPS_PER_TURN):
                if not self._step(session, session.steps):
                    return False
        except Exception as error:
            session.listener.on_error(error)
            return False
        return True

    def _begin(self, session: _Session) -> Iterator[Step]:
        request = session.request
        session.counters.first_scheduled_ns = time.monotonic_ns()
        assert session.slot is not None
        return session.slot.decode(
            request.prompt,
            request.sampling,
            request.limits,
            request.num_draft_tokens,
            log_probs=request.log_probs,
            running=lambda: len(self._active),
        )

    def _step(self, session: _Session, steps: Iterator[Step]) -> bool:
        if session.listener.is_cancelled():
            session.listener.on_cancelled()
            return False
        if session.stop:
            session.listener.on_stopped(session.counters)
            return False
        step = next(steps)
        session.counters.add(step)
        self.observe(step)
        session.listener.on_step(step, session.counters)
        return step.finish is None

    def _release(self, session: _Session) -> None:
        with self._changed:
            self._active.remove(session)
            if session.slot is not None:
                self._free.append(session.slot)
        session.steps = session.slot = None
