"""The start of a run's server, and its memory compared with weights and KV cache."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specpipe.bench.prompts import prompt_sets
from specpipe.bench.served import Notify, Progress, endless, send, started
from specpipe.core.artifacts import read_artifact
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.validate.metrics import Figure, figure

MAX_TOKENS = 200  # of an answer, so that every slot holds a sequence of some length


@dataclass(frozen=True)
class ServingRow:
    """The figures of one run's server."""

    run: str
    start_s: Figure  # until every model is ready
    memory_bytes: int  # proportional set size of all processes after answers in every slot
    weights_bytes: int  # of all engines on disk
    kv_cache_bytes: int | None  # of all sequences at their longest; None: the plan has no estimate
    rest_bytes: int | None  # memory without weights and KV cache; None: those are on a GPU


def bench_serving(
    run: Run,
    starts: int,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> ServingRow:
    """Build a run, and start its server `starts` times; the last start is used for the memory.

    Raises what `build` and `start_server` raise.
    """
    build(run, notify=notify)
    notify(f"{run.config.name}: starting the server {starts} times")
    seconds, used = [], 0
    for number in range(starts):
        took, used = _start(run)
        seconds.append(took)
        progress(number + 1, starts)
    weights = sum(engine_bytes(run))
    memory = run.plan.memory
    cache = memory.caches if memory else None
    on_cpu = memory is not None and not memory.kv
    rest = used - weights - cache if on_cpu and cache is not None else None
    return ServingRow(run.config.name, figure(seconds), used, weights, cache, rest)


def _start(run: Run) -> tuple[float, int]:
    """Start the server, send a request for every slot; return seconds and bytes."""
    engine = run.config.engine
    most = min(MAX_TOKENS, engine.max_seq_len - engine.max_input_len)
    (prompts,) = prompt_sets(run.config, (), engine.max_batch_size)
    with started(run.workspace) as running:
        for number in range(engine.max_batch_size):
            prompt = prompts.prompts[number % len(prompts.prompts)]
            send(running.client, prompt, endless(running.client, most))
        return running.start_s, session_bytes(running.server.process.pid)


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
