"""Keeps a server running until it is stopped: restarts it, and ends it between answers."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from specpipe.core.errors import StageFailed
from specpipe.serve.progress import Patience, Watch, monitors
from specpipe.serve.tritonserver import RunningServer
from specpipe.serve.watch import requests_in_hand

POLL_SECONDS = 0.2
HOUR_SECONDS = 3600.0
NORMAL = Patience()


@dataclass(frozen=True)
class StopRequest:
    """Set from outside: to stop once every answer is complete, then to stop at once."""

    asked: Event = field(default_factory=Event)
    hurried: Event = field(default_factory=Event)

    def repeat(self) -> None:
        """Ask; who asks again is in a hurry."""
        (self.hurried if self.asked.is_set() else self.asked).set()


@dataclass
class RestartBudget:
    """How often a server may be started again: `restarts` times in any hour."""

    restarts: int
    now: Callable[[], float] = time.monotonic
    _used: list[float] = field(default_factory=list)

    def spend(self) -> bool:
        """Take one restart; tells whether there was one left."""
        self._used = [at for at in self._used if self.now() - at < HOUR_SECONDS]
        self._used.append(self.now())
        return len(self._used) <= self.restarts


def keep_serving(
    start: Callable[[], AbstractContextManager[RunningServer]],
    stop: StopRequest,
    budget: RestartBudget,
    drain_s: float,
    *,
    on_ready: Callable[[RunningServer], None],
    report: Callable[[str], None],
    patience: Patience = NORMAL,
) -> None:
    """Serve until `stop` is asked for, then let in-flight requests end, for `drain_s` at most.

    A server that ends by itself, stands still for longer than `patience` allows, or loses the
    process of a model is started again as long as `budget` lasts; its log is kept next to the new
    one. Raises StageFailed when the budget is spent, and what `start` raises.
    """
    while True:
        with start() as endpoint:
            if stop.asked.is_set():  # while it was starting
                return
            on_ready(endpoint)
            failure = _await_end(endpoint, stop, patience, report)
            if failure is None:
                _drain(endpoint, stop, drain_s, report)
                return
        if not budget.spend():
            after = f", after {budget.restarts} restarts in an hour" if budget.restarts else ""
            raise StageFailed(
                f"serve: {failure}{after}",
                hint=f"its output is in {endpoint.log}; --restarts N starts it again",
            )
        kept = _keep_log(endpoint.log)
        report(f"{failure}; its output is in {kept}. Starting it again")


def _await_end(
    endpoint: RunningServer, stop: StopRequest, patience: Patience, report: Callable[[str], None]
) -> str | None:
    """Wait for a request to stop; return what went wrong if that came first."""
    with Watch(monitors(endpoint, patience), report) as watch:
        while not stop.asked.wait(POLL_SECONDS):
            failure = endpoint.failure() or watch.failure()
            if failure is not None:
                return failure
    return None


def _drain(
    endpoint: RunningServer, stop: StopRequest, drain_s: float, report: Callable[[str], None]
) -> None:
    """Wait until two looks in a row find nothing in flight: between them a request may move on."""
    deadline = time.monotonic() + drain_s
    idle, told = 0, False
    while idle < 2 and time.monotonic() < deadline and endpoint.failure() is None:
        count = requests_in_hand(endpoint.address)
        idle = 0 if count else idle + 1
        if count and not told:
            report(
                f"requests in flight: {count}; they have {drain_s:.0f} s; stop again to end them"
            )
            told = True
        if stop.hurried.wait(POLL_SECONDS):
            return


def _keep_log(log: Path) -> Path:
    """Move the log of a server that ended out of the way of the next one's; one is kept."""
    kept = log.with_suffix(".crashed.log")
    log.replace(kept)
    return kept
