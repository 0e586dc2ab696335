"""Watches the progress of a running server: a server can be live and ready, and answer nobody.

Four things are watched, each by its own means, so that a busy server is not taken for a hung one:
HTTP health, a gRPC stream (to a model that does not exist: Triton answers before any queue), the
thread that owns the engine (see `ping_engine`), and, while no counter moves, the path of a whole
request: one for a single token.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from specpipe.engine.fronts.front import HEALTH
from specpipe.serve.connect import read_url
from specpipe.serve.probe import answers_ping, answers_request, answers_stream
from specpipe.serve.tritonserver import RunningServer
from specpipe.serve.watch import is_live, read_metrics

STALLED_SECONDS = 30.0
QUIET_SECONDS = 10.0
LEAST_FAILURES = 3  # asks in a row; one may fail because this machine was paused
UNCOUNTED = 10  # times the bound, for a server none of whose counters moves within an answer
_POLL_SECONDS = 0.2

_ITERATIONS = 'nv_trt_llm_general_metrics{general_type="iteration_counter"'
_STEPS = "specpipe_steps_total{"  # by the model of the engine at once, by text models at the end
_ENGINE = 'model="tensorrt_llm"'
_COUNTERS = (
    _ITERATIONS,
    _STEPS,
    "specpipe_requests_total{",
    "nv_inference_request_success{",
    "nv_inference_request_failure{",
    "nv_inference_exec_count{",
)


@dataclass(frozen=True)
class Patience:
    """For how many seconds nothing may move, and when a request of our own finds that out."""

    stalled_s: float = STALLED_SECONDS
    quiet_s: float = QUIET_SECONDS

    @staticmethod
    def of(stalled_s: float) -> "Patience":
        """Return the patience whose first request comes early enough to be repeated."""
        return Patience(stalled_s, min(QUIET_SECONDS, stalled_s / 3))

    @property
    def period_s(self) -> float:
        """How often something that answers is asked."""
        return self.stalled_s / 6

    @property
    def answer_s(self) -> float:
        """For how long an answer is awaited: three times between `quiet_s` and `stalled_s`."""
        return (self.stalled_s - self.quiet_s) / LEAST_FAILURES


class Monitor(Protocol):
    """Something that finds a failure; called often, it may block until an answer is due."""

    @property
    def what(self) -> str:
        """What is watched."""
        ...

    def failure(self) -> str | None:
        """Return what stands still, and for how long; None while it moves."""
        ...


@dataclass
class Pulse:
    """Finds what does not answer, however busy the server is."""

    what: str
    ask: Callable[[], bool]
    patience: Patience = field(default_factory=Patience)
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """Begin with a server that has just reported that it is ready."""
        self._asked = self._heard = self.now()
        self._failures = 0

    def failure(self) -> str | None:
        """Ask once a period, and again at once where no answer came; see `Monitor`."""
        if not self._failures and self.now() - self._asked < self.patience.period_s:
            return None
        answered = self.ask()
        self._asked = self.now()
        if answered:
            self._heard, self._failures = self._asked, 0
            return None
        self._failures += 1
        silent = self._asked - self._heard
        if silent < self.patience.stalled_s or self._failures < LEAST_FAILURES:
            return None
        return f"{self.what} has not answered for {silent:.0f} s"


@dataclass(frozen=True)
class Movement:
    """Counters of a server: two that differ mean that it moved in between."""

    counters: tuple[str, ...]
    counts_steps: bool  # as they happen; or with whole requests only


@dataclass
class Requests:
    """Finds a server that answers no request although each of its parts answers.

    `look` returns what has moved so far, None if that cannot be read; `ask` sends a request.
    """

    look: Callable[[], Movement | None]
    ask: Callable[[], bool]
    patience: Patience = field(default_factory=Patience)
    now: Callable[[], float] = time.monotonic
    what: str = "the path of a request"

    def __post_init__(self) -> None:
        """Begin with a server that has just reported that it is ready."""
        self._looked = self._moved = self.now()
        self._last: Movement | None = None
        self._failures = 0

    def failure(self) -> str | None:
        """Look once a period; ask while nothing has moved for a while; see `Monitor`."""
        if not self._failures and self.now() - self._looked < self.patience.period_s:
            return None
        if self._moves():
            self._moved, self._failures = self.now(), 0
        self._looked = self.now()
        still = self._looked - self._moved
        if still < self._bound() or self._failures < LEAST_FAILURES:
            return None
        return f"nothing has moved for {still:.0f} s, and a request for one token is not answered"

    def _moves(self) -> bool:
        seen = self.look()
        if seen is not None and seen != self._last:
            self._last = seen
            return True
        if self.now() - self._moved < self.patience.quiet_s:
            return False
        answered = self.ask()
        self._failures += not answered
        return answered

    def _bound(self) -> float:
        counts = self._last is None or self._last.counts_steps
        return self.patience.stalled_s * (1 if counts else UNCOUNTED)


def movement(lines: Iterable[str]) -> Movement:
    """Return the counters among the lines of Prometheus that only work can move."""
    found = tuple(sorted(line for line in lines if line.startswith(_COUNTERS)))
    steps = any(
        line.startswith(_ITERATIONS) or (line.startswith(_STEPS) and _ENGINE in line)
        for line in found
    )
    return Movement(found, steps)


def _look(server: RunningServer) -> Movement | None:
    lines = read_metrics(server.address)
    return None if lines is None else movement(lines)


def _is_healthy(url: str, timeout_s: float) -> bool:
    return read_url(url, timeout_s) is not None


def monitors(server: RunningServer, patience: Patience) -> list[Monitor]:
    """Return what watches a server; gRPC is left out where it takes certificates that we lack."""
    url, wait_s = server.address.grpc, patience.answer_s
    if not server.has_grpc:
        healthy = partial(_is_healthy, f"{server.url}{HEALTH}", wait_s)
        return [Pulse(server.program, healthy, patience)]
    found: list[Monitor] = [
        Pulse("tritonserver", partial(is_live, server.address, wait_s), patience)
    ]
    if server.engine_socket is not None:
        ask = partial(answers_ping, server.engine_socket, wait_s)
        found.append(Pulse("the engine", ask, patience))
    if not server.encrypted:
        streams = partial(answers_stream, url, wait_s)
        found.append(Pulse("tritonserver's gRPC", streams, patience))
        if server.front is not None:
            whole = partial(answers_request, url, server.front, wait_s)
            found.append(Requests(partial(_look, server), whole, patience))
    return found


class Watch:
    """Runs monitors, a thread each, for the length of a block.

    A monitor that fails itself is reported and left out: that is no reason to end a server.
    """

    def __init__(self, found: Sequence[Monitor], report: Callable[[str], None]) -> None:
        self._monitors, self._report = found, report
        self._ended = threading.Event()
        self._running: list[Future[str | None]] = []

    def __enter__(self) -> "Watch":
        self._pool = ThreadPoolExecutor(max(1, len(self._monitors)), "watch")
        self._running = [self._pool.submit(self._run, monitor) for monitor in self._monitors]
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._pool.shutdown(wait=False)  # what still waits for an answer ends with the server

    def _run(self, monitor: Monitor) -> str | None:
        try:
            while not self._ended.wait(_POLL_SECONDS):
                failure = monitor.failure()
                if failure is not None:
                    return failure
        except Exception as error:
            self._report(f"{monitor.what} is not watched any more: {type(error).__name__}: {error}")
        return None

    def failure(self) -> str | None:
        """Return the first failure that was found."""
        ended = (future.result() for future in self._running if future.done())
        return next((failure for failure in ended if failure is not None), None)
