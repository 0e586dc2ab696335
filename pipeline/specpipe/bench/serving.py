"""The start of a run's server, and its memory compared with weights and KV cache."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specpipe.bench.prompts import prompt_sets
from specpipe.bench.served import Notify, Progress, Remote, Served, called, endless, send, started
from specpipe.core.artifacts import read_artifact
from specpipe.repository.description import read_endpoint
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.serve.client import Client
from specpipe.validate.arms import served_arms
from specpipe.validate.load_figures import LoadPoint, load_points
from specpipe.validate.metrics import Figure, figure
from specpipe.validate.questions import load_questions, tokenizer_folder
from specpipe.validate.run_scenarios import run_scenario
from specpipe.validate.scenarios import Setup
from specpipe.validate.scenarios.concurrency import SCENARIO as CONCURRENCY

MAX_TOKENS = 200  # of an answer, so that every slot holds a sequence of some length


@dataclass(frozen=True)
class ServingRow:
    """The figures of one run's server."""

    run: str
    start_s: Figure | None  # until every model is ready; None: the server ran already
    memory_bytes: int | None  # proportional set size of all processes after answers in every slot
    weights_bytes: int  # of all engines on disk
    kv_cache_bytes: int | None  # of all sequences at their longest; None: the plan has no estimate
    rest_bytes: int | None  # memory without weights and KV cache; None: those are on a GPU
    loads: tuple[LoadPoint, ...] = ()  # closed loops of clients, if they were asked for


def bench_serving(
    run: Run,
    starts: int,
    clients: Sequence[int] = (),
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> ServingRow:
    """Build a run, and start its server `starts` times; the last start is used for the memory.

    `clients` are numbers of clients whose closed loops are measured after it, as the scenario
    `concurrency` of `validate` measures them. Raises what `build` and `start_repository` raise.
    """
    build(run, notify=notify)
    notify(f"{run.config.name}: starting the server {starts} times")
    seconds, used, loads = [], 0, []
    for number in range(starts):
        with _start(run) as running:
            seconds.append(running.start_s)
            used = session_bytes(running.server.process.pid)
            if clients and number + 1 == starts:
                notify(f"{run.config.name}: closed loops of clients")
                loads = measure_loads(run, running.client, clients)
        progress(number + 1, starts)
    weights = sum(engine_bytes(run))
    memory = run.plan.memory
    cache = memory.caches if memory else None
    on_cpu = memory is not None and not memory.kv
    rest = used - weights - cache if on_cpu and cache is not None else None
    name, start = run.config.name, figure(seconds)
    return ServingRow(name, start, used, weights, cache, rest, tuple(loads))


def bench_running(
    run: Run, remote: Remote, clients: Sequence[int], *, notify: Notify = lambda text: None
) -> ServingRow:
    """Measure closed loops of clients of a server that runs already: neither start nor memory.

    Raises what `called` raises.
    """
    with called(run, remote, notify) as client:
        notify(f"{run.config.name}: closed loops of clients")
        loads = measure_loads(run, client, clients)
    weights, memory = sum(engine_bytes(run)), run.plan.memory
    cache = memory.caches if memory else None
    return ServingRow(run.config.name, None, None, weights, cache, None, tuple(loads))


def measure_loads(run: Run, client: Client, clients: Sequence[int]) -> list[LoadPoint]:
    """Return the figures of closed loops of clients, without and with speculation."""
    options = run.config.validate
    loads = replace(options.concurrency, clients=tuple(clients), rates=())
    config = replace(run.config, validate=replace(options, concurrency=loads))
    repository = run.workspace.repository  # an OpenAI API does not name the tokenizer
    folder = tokenizer_folder(repository, read_endpoint(repository))
    setup = Setup(config, client.endpoint, load_questions(config, folder))
    arms = served_arms(config, client.endpoint.text)
    measured = run_scenario(CONCURRENCY, client, setup, arms)
    return load_points(measured.answers, measured.seconds, options.slo)


@contextlib.contextmanager
def _start(run: Run) -> Iterator[Served]:
    """Start the server and send a request for every slot; the server runs until the block ends."""
    engine = run.config.engine
    most = min(MAX_TOKENS, engine.max_seq_len - engine.max_input_len)
    (prompts,) = prompt_sets(run.config, (), engine.max_batch_size)
    with started(run.workspace) as running:
        for number in range(engine.max_batch_size):
            prompt = prompts.prompts[number % len(prompts.prompts)]
            send(running.client, prompt, endless(running.client, most))
        yield running


def engine_bytes(run: Run) -> Iterator[int]:
    """Yield the bytes of each engine on disk, as its manifest lists them."""
    for role in run.plan.requests:
        artifact = read_artifact(run.workspace.engine(role))
        yield sum(artifact.manifest.files.values()) if artifact else 0


def session_bytes(session: int, processes: Path = Path("/proc")) -> int:
    """Return the proportional set size of all processes of a session.

    A page that several processes share is counted once in total.
    """
    total = 0
    for stat in processes.glob("[0-9]*/stat"):
        # A process that has ended, or one of another user.
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int(stat.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[3]) == session:
                total += _proportional(stat.with_name("smaps_rollup").read_text(encoding="utf-8"))
    return total


def _proportional(rollup: str) -> int:
    """Return the bytes of the line `Pss:` of smaps_rollup."""
    sizes = [line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")]
    return int(sizes[0]) * 1024
