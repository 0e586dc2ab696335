"""A soak test: clients of every kind load a run's server; answers and resources are watched."""

import itertools
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.bench.served import Notify, Progress, Served, served
from specpipe.bench.soak_requests import (
    ANSWER,
    FAILED,
    FEW,
    PROMPTS,
    WRONG,
    Send,
    SoakSubject,
    attempt,
    choose_kinds,
)
from specpipe.config.run_config import RunConfig
from specpipe.run.run import Run
from specpipe.serve.client import collect
from specpipe.serve.probe import answers_ping
from specpipe.serve.tritonserver import RunningServer

PARTS = 10  # of the load; memory is measured after each
LONG_PROMPT = 1000  # tokens, if the run's limits allow them
ENDLESS = 2000  # likewise, of an answer whose client disconnects
ROOM = 100  # tokens that the prompts in text may have
SETTLE_S = 2.0  # in which the server ends requests whose clients have disconnected
PING_S = 30.0
Counts = Counter[tuple[str, str]]  # by kind and outcome


@dataclass(frozen=True)
class Extent:
    """How long clients send requests: a number of requests, or seconds if that is 0."""

    seconds: float
    requests: int = 0

    @property
    def part(self) -> "Extent":
        """Return one of PARTS equal parts."""
        return Extent(self.seconds / PARTS, math.ceil(self.requests / PARTS))

    def begin(self) -> Callable[[], bool]:
        """Return a function that is called before each request, and tells whether to send it."""
        numbers, deadline = itertools.count(1), time.monotonic() + self.seconds
        if self.requests:
            return lambda: next(numbers) <= self.requests
        return lambda: time.monotonic() < deadline


@dataclass(frozen=True)
class Load:
    """Who sends what, and for how long."""

    extent: Extent
    clients: int = 6
    kinds: Sequence[str] = ()  # empty: all that the server supports and can survive


@dataclass(frozen=True)
class OutcomeCount:
    """How often requests of one kind ended in one way."""

    kind: str
    outcome: str
    count: int


@dataclass(frozen=True)
class Usage:
    """Memory, threads and open files of a process."""

    resident_mib: float
    threads: int
    files: int


@dataclass(frozen=True)
class ProcessUsage:
    """The usage of one process of the server, before and after the load."""

    process: str  # tritonserver, or the model that runs in it
    before: Usage  # after a warm-up with a tenth of the load
    after: Usage
    resident_mib: tuple[float, ...]  # after every tenth of the load


@dataclass(frozen=True)
class SoakRow:
    """The result of one run's soak test."""

    run: str
    outcomes: tuple[OutcomeCount, ...]
    processes: tuple[ProcessUsage, ...]  # empty if the server stopped
    failure: str | None  # why the server no longer responds

    @property
    def passed(self) -> bool:
        """Whether the server still runs and no answer was wrong."""
        return self.failure is None and not self.wrong

    @property
    def wrong(self) -> int:
        """Return the number of requests whose outcome is wrong or failed."""
        return sum(o.count for o in self.outcomes if o.outcome.startswith((WRONG, FAILED)))


def bench_soak(
    run: Run,
    load: Load,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> SoakRow:
    """Build and serve a run, and load it with clients; every answer is compared.

    Raises what `served` and `choose_kinds` raise. A server that stops does not raise: the row has
    the failure.
    """
    with served(run, notify) as running:
        subject = make_subject(run.config, running)
        kinds = choose_kinds(load.kinds, running.server, running.client)
        notify(f"{run.config.name}: warming up with a tenth of the load")
        run_clients(subject, kinds, load.clients, load.extent.part, seed=0)
        outcomes, usages = _load_in_parts(subject, kinds, load, progress)
        for connection in subject.half_open:
            connection.close()
        time.sleep(SETTLE_S)
        failure = find_failure(running.server)
        found = tuple(OutcomeCount(*key, count) for key, count in sorted(outcomes.items()))
        processes = () if failure else tuple(_processes(running.server, usages))
    return SoakRow(run.config.name, found, processes, failure)


def make_subject(config: RunConfig, running: Served) -> SoakSubject:
    """Request the expected answers while nothing else runs."""
    engine, client = config.engine, running.client
    answers = {prompt: client.generate(prompt, ANSWER).text for prompt in PROMPTS}
    length = min(LONG_PROMPT, engine.max_input_len, engine.max_seq_len - FEW.max_tokens)
    rng = random.Random(0)
    long = tuple(rng.randrange(3, 200) for _ in range(length))
    expected: tuple[int, ...] = ()
    if client.endpoint.tokens is not None:
        expected = collect(client.stream_tokens(long, FEW)).tokens
    endless = max(1, min(ENDLESS, engine.max_seq_len - ROOM))
    return SoakSubject(running.server, client, answers, long, expected, endless)


def _load_in_parts(
    subject: SoakSubject, kinds: Mapping[str, Send], load: Load, progress: Progress
) -> tuple[Counts, dict[int, list[Usage]]]:
    """Send the load; return the outcomes, and each process's usage at first and after each part."""
    pids = process_names(subject.server)
    usages = {pid: [measure(pid)] for pid in pids}
    outcomes: Counts = Counter()
    for part in range(1, PARTS + 1):
        outcomes += run_clients(subject, kinds, load.clients, load.extent.part, seed=part)
        if subject.server.failure() is None:
            for pid, found in usages.items():
                found.append(measure(pid))
        progress(part, PARTS)
    return outcomes, usages


def process_names(server: RunningServer) -> dict[int, str]:
    """Return the processes of a server: tritonserver, and one for each model."""
    return {server.process.pid: "tritonserver", **server.models}


def _processes(server: RunningServer, usages: Mapping[int, Sequence[Usage]]) -> list[ProcessUsage]:
    return [
        ProcessUsage(
            name,
            usages[pid][0],
            measure(pid),
            tuple(usage.resident_mib for usage in usages[pid][1:]),
        )
        for pid, name in process_names(server).items()
    ]


def find_failure(server: RunningServer) -> str | None:
    """Return why the server no longer responds; None if it does."""
    failure = server.failure()
    if failure is None and server.engine_socket and not answers_ping(server.engine_socket, PING_S):
        return "the engine does not respond"
    return failure


def run_clients(
    subject: SoakSubject, kinds: Mapping[str, Send], clients: int, extent: Extent, *, seed: int
) -> Counts:
    """Send random requests from several threads; count the outcomes of each kind."""
    outcomes: Counts = Counter()
    lock, may_send = threading.Lock(), extent.begin()

    def run(client: int) -> None:
        rng = random.Random(seed * clients + client)
        while may_send() and subject.server.failure() is None:
            kind = rng.choice(list(kinds))
            outcome = attempt(kinds[kind], subject, rng)
            with lock:
                outcomes[kind, outcome] += 1

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def measure(pid: int) -> Usage:
    """Return the usage of a running process, from /proc."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Usage(int(status["VmRSS"][0]) / 1024, int(status["Threads"][0]), files)
