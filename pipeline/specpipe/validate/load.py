"""Loads: how many requests are in flight at a time, and when they are sent.

A closed loop has clients that each send a request as soon as their last one has ended. In an open
loop requests arrive at random times, whether earlier ones have ended or not.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ClosedLoop:
    """A number of clients, each with one request in flight."""

    clients: int = 1

    def __str__(self) -> str:
        return f"{self.clients} client{'s' * (self.clients != 1)}"


@dataclass(frozen=True)
class OpenLoop:
    """Arrivals of a Poisson process with this many requests per second."""

    rate: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s"

    def arrivals(self, count: int) -> list[float]:
        """Return the seconds from the start at which `count` requests are sent."""
        rng, at, found = random.Random(self.seed), 0.0, []
        for _ in range(count):
            found.append(at)
            at += rng.expovariate(self.rate)
        return found


Traffic = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Sent(Generic[T]):
    """The result of one request, and when it was sent, in seconds since the load began."""

    result: T
    sent_s: float


def run_load(
    load: Traffic, jobs: Sequence[Callable[[], T]], progress: Progress = lambda done, total: None
) -> tuple[list[Sent[T]], float]:
    """Run all jobs under a load; return their results in the order of jobs, and the seconds.

    An exception of a job ends the load and is raised.
    """
    began = time.perf_counter()
    runner = _Runner(jobs, began, progress)
    if isinstance(load, ClosedLoop):
        threads = [threading.Thread(target=runner.take_all) for _ in range(load.clients)]
    else:
        due = load.arrivals(len(jobs))
        threads = [threading.Thread(target=runner.run_at, args=(i, s)) for i, s in enumerate(due)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if runner.error is not None:
        raise runner.error
    return [runner.found[i] for i in range(len(jobs))], time.perf_counter() - began


class _Runner(Generic[T]):
    """Takes jobs from one list in several threads."""

    def __init__(self, jobs: Sequence[Callable[[], T]], began: float, progress: Progress) -> None:
        self.found: dict[int, Sent[T]] = {}
        self.error: BaseException | None = None
        self._jobs, self._began, self._progress = jobs, began, progress
        self._numbers, self._lock = iter(range(len(jobs))), threading.Lock()

    def take_all(self) -> None:
        """Run the next job until there is none."""
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None or self.error is not None:
                return
            self._run(number)

    def run_at(self, number: int, at_s: float) -> None:
        """Run one job at a time after the start."""
        time.sleep(max(0.0, self._began + at_s - time.perf_counter()))
        if self.error is None:
            self._run(number)

    def _run(self, number: int) -> None:
        sent_s = time.perf_counter() - self._began
        try:
            result = self._jobs[number]()
        except BaseException as error:
            self.error = self.error or error
            return
        with self._lock:
            self.found[number] = Sent(result, sent_s)
            self._progress(len(self.found), len(self._jobs))
