"""Many requests, one engine: a queue, and a batch of streams that share every step.

The engine belongs to one thread, the scheduler's. Requests are admitted in order of arrival, at
most `max_batch_size` at a time. An admitted request joins the next round of the batcher. Requests
leave, stop and are cancelled between rounds.

No request can end the thread: what listeners raise is logged, or fails their own request.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from specpipe.core.contracts import Logits
from specpipe.runtime.batcher import Event
from specpipe.runtime.exchange import PROBE_ID, Counters, Heartbeat, Request
from specpipe.runtime.failures import EngineError, QueueFull
from specpipe.runtime.guards import harmless, start_vital_thread
from specpipe.runtime.stream import Stream
from specpipe.speculate.decode import Step

log = logging.getLogger("specpipe")

MOST_PROBES = 16
SWEEP_NS = 100_000_000  # how often the queue is searched for cancelled requests


class Decoder(Protocol):
    """Decodes many requests; see `Batcher`."""

    def add(self, request: Request) -> Stream:
        """Take a request; it starts in the next round. Raises what is wrong with it."""
        ...

    def remove(self, stream: Stream) -> None:
        """End a stream, wherever it is."""

    def round(self) -> list[tuple[Stream, Event]]:
        """Run every engine once and return what the streams emitted."""
        ...


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
    stream: Stream | None = None

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

    `observe` is called with every step of every request, `rest` when none is left, `after_round`
    once all listeners have been called; all from the scheduler's thread.
    """

    decoder: Decoder
    max_batch_size: int
    max_queue_size: int
    observe: Callable[[Step], None] = lambda step: None
    rest: Callable[[], None] = lambda: None
    after_round: Callable[[], None] = lambda: None
    _waiting: deque[_Session] = field(default_factory=deque)
    _active: dict[Stream, _Session] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False
    _last_sweep_ns: int = 0
    _probes: list[Callable[[Heartbeat], None]] = field(default_factory=list)
    _rounds: int = 0
    _counts: bool = True  # no step failed to be counted yet
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that owns the engine."""
        self._thread = start_vital_thread(self._run, "scheduler")

    def submit(self, request: Request, listener: Listener) -> None:
        """Queue a request; raises QueueFull instead of letting it wait without bound.

        Raises EngineError after `close`.
        """
        session = _Session(request, listener, Counters(time.monotonic_ns()))
        with self._changed:
            if self._closing:
                raise EngineError("UNAVAILABLE", "the server is ending")
            waiting = len(self._active) + len(self._waiting) - self.max_batch_size
            if waiting >= self.max_queue_size:
                raise QueueFull(waiting)
            self._waiting.append(session)
            self._changed.notify()

    def stop(self, request_id: str) -> bool:
        """End a request at its next step; tells whether it was there."""
        with self._changed:
            sessions = (*self._active.values(), *self._waiting)
            found = [s for s in sessions if s.request.request_id == request_id]
            for session in found:
                session.stop = True
            self._changed.notify()
        return bool(found)

    def probe(self, answer: Callable[[Heartbeat], None]) -> None:
        """Have the scheduler's thread call `answer` between two rounds.

        Raises EngineError if too many answers are due, which means that the thread stands still.
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
            for session in [s for s in self._active.values() if s.is_gone()]:
                session.end()
                self._release(session)
            for stream, event in self._round():
                if stream in self._active:
                    self._deliver(self._active[stream], event)
            if not self._active:
                harmless(self.rest)
            harmless(self.after_round)
        harmless(self.after_round)

    def _round(self) -> list[tuple[Stream, Event]]:
        """Run a round; an error of the batcher itself fails all streams."""
        if not self._active:
            return []
        try:
            return self.decoder.round()
        except Exception as error:
            return [(stream, error) for stream in self._active]

    def _admit(self) -> bool:
        """Fill the batch from the queue; waits while there is nothing to do."""
        with self._changed:
            while not (self._active or self._waiting or self._probes or self._closing):
                self._changed.wait()
            gone = self._sweep()
            count = min(len(self._waiting), self.max_batch_size - len(self._active))
            admitted = [self._waiting.popleft() for _ in range(count)]
            heartbeat = Heartbeat(
                self._rounds, len(self._active) + len(admitted), len(self._waiting)
            )
            probes, self._probes = self._probes, []
        for session in gone:
            session.end()
            self._release(session)
        for session in admitted:
            self._begin(session)
        for answer in probes:
            harmless(answer, heartbeat)
        return not self._closing

    def _begin(self, session: _Session) -> None:
        session.counters.first_scheduled_ns = time.monotonic_ns()
        try:
            session.stream = self.decoder.add(session.request)
        except Exception as error:
            harmless(session.listener.on_error, error)
            return
        with self._changed:
            self._active[session.stream] = session

    def _sweep(self) -> list[_Session]:
        """Take cancelled requests out of the queue; at the end, return all requests."""
        now = time.monotonic_ns()
        if self._closing:
            gone = [*self._active.values(), *self._waiting]
        elif len(self._active) < self.max_batch_size or now - self._last_sweep_ns < SWEEP_NS:
            gone = []
        else:
            self._last_sweep_ns = now
            gone = [s for s in self._waiting if s.is_gone()]
        self._waiting = deque(s for s in self._waiting if s not in gone)
        return gone

    def _deliver(self, session: _Session, event: Event) -> None:
        """Hand an event to the listener; release the stream after its last one."""
        try:
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Step):
                self._take(session, event)
                if event.finish is not None:
                    self._release(session)
            else:
                session.listener.on_logits(event.logits)
        except Exception as error:
            harmless(session.listener.on_error, error)
            self._release(session)

    def _take(self, session: _Session, step: Step) -> None:
        session.counters.add(step)
        try:
            if session.request.request_id != PROBE_ID:
                self.observe(step)
        except Exception as error:
            if self._counts:
                log.error("a step was not counted; later failures are not logged", exc_info=error)
            self._counts = False
        session.listener.on_step(step, session.counters)

    def _release(self, session: _Session) -> None:
        stream, session.stream = session.stream, None
        if stream is not None:
            with self._changed:
                self._active.pop(stream, None)
            harmless(self.decoder.remove, stream)
