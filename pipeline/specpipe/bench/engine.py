"""Steps of a run's CPU engine, by sequences and rows, and the rate of prefill by chunk size."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specpipe.bench.precision import precision_of
from specpipe.bench.served import Notify, Progress
from specpipe.config.run_config import RunConfig
from specpipe.core.engines import Cache, Item, LoadedEngine
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.assembly import load_backend

Shape = tuple[int, int]  # sequences, new rows of each
SHAPES: tuple[Shape, ...] = ((1, 1), (1, 2), (1, 8), (4, 1), (8, 1), (4, 8))
CHUNKS = (32, 64, 128, 256)
PROMPT = 1024  # tokens, if the engine's sequences can be that long
REPEATS = 4  # of a shape in a round; the first is not counted, since a new shape costs more
PREFILLS = 3  # of each chunk size
FIRST_TOKEN = 100  # tokens below are special in many vocabularies


@dataclass(frozen=True)
class StepTime:
    """The median time of a step; None: the engine's KV pool has no room for that many sequences."""

    sequences: int
    rows: int  # new rows of each sequence; the logits of all are computed
    ms: float | None


@dataclass(frozen=True)
class PrefillRate:
    """The median rate at which one sequence reads a prompt."""

    chunk: int  # tokens in a call
    tokens_per_s: float


@dataclass(frozen=True)
class EngineRow:
    """The figures of one run's engine."""

    run: str
    precision: str
    past: int  # cached tokens of each sequence before a step
    steps: tuple[StepTime, ...]
    prefill: tuple[PrefillRate, ...]


def bench_engine(
    run: Run,
    past: int,
    rounds: int,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> EngineRow:
    """Build a run's engines, load the target's, and time its steps after `past` cached tokens.

    A step's time includes the engine's bookkeeping in Python. Raises Unsupported if the run is not
    for the CPU engine, ConfigError if `past` is too long for it, and what `build` raises.
    """
    config = run.config
    require_measurable(config, past)
    build(run, ("convert", "compile"), notify=notify)
    engine = load_backend(config.engine.backend).load(run.workspace.engine("target"))
    notify(f"{config.name}: measuring the engine")
    return EngineRow(
        config.name,
        precision_of(config.engine),
        past,
        step_times(engine, past, rounds, progress),
        prefill_rates(engine),
    )


def require_measurable(config: RunConfig, past: int) -> None:
    """Refuse a run whose engine cannot be driven from here, and sequences that are too long."""
    engine = config.engine
    if not engine.traits.own_engine:
        raise Unsupported(
            f"{config.path}: only the CPU engine's steps are measured, not those of backend "
            f"{engine.backend}",
            hint="measure the run in its server with `specpipe bench speculation`",
        )
    longest = engine.max_seq_len - max(rows for _, rows in SHAPES)
    if past > longest:
        raise ConfigError(
            f"--past is {past}: engine.max_seq_len of {config.path} leaves room for {longest}",
            hint="give a smaller --past, or raise engine.max_seq_len",
        )


def step_times(
    engine: LoadedEngine, past: int, rounds: int, progress: Progress
) -> tuple[StepTime, ...]:
    """Return the median milliseconds of a step of every shape; the shapes take turns."""
    shapes = [shape for shape in SHAPES if has_room(engine, shape, past)]
    caches = [engine.open() for _ in range(max((count for count, _ in shapes), default=0))]
    for cache in caches:
        read(engine, cache, past, past)
    samples: dict[Shape, list[float]] = {shape: [] for shape in shapes}
    for number in range(rounds):
        for count, rows in shapes:
            items = [item(engine, cache, rows, rows) for cache in caches[:count]]
            times = [timed(engine, items) for _ in range(REPEATS)]
            samples[count, rows] += times[1:]
        progress(number + 1, rounds)
    for cache in caches:
        cache.release()
    medians = {shape: statistics.median(samples[shape]) for shape in shapes}
    return tuple(StepTime(*shape, medians.get(shape)) for shape in SHAPES)


def has_room(engine: LoadedEngine, shape: Shape, past: int) -> bool:
    """Tell whether the KV pool holds the sequences of a shape with all their rows."""
    count, rows = shape
    caches = [engine.open() for _ in range(count)]
    fits = engine.fits([item(engine, cache, past + rows, 0) for cache in caches])
    for cache in caches:
        cache.release()
    return fits


def prefill_rates(engine: LoadedEngine) -> tuple[PrefillRate, ...]:
    """Return the tokens per second of a prompt for every size of its chunks."""
    rates = []
    length = min(PROMPT, engine.facts.max_seq_len)
    for size in (size for size in CHUNKS if size <= length):
        whole = length - length % size
        rate = whole / statistics.median(_prefill_s(engine, whole, size) for _ in range(PREFILLS))
        rates.append(PrefillRate(size, rate))
    return tuple(rates)


def _prefill_s(engine: LoadedEngine, length: int, size: int) -> float:
    began = time.perf_counter()
    cache = engine.open()
    read(engine, cache, length, size)
    seconds = time.perf_counter() - began
    cache.release()
    return seconds


def read(engine: LoadedEngine, cache: Cache, length: int, chunk: int) -> None:
    """Keep a prompt of `length` tokens, a multiple of `chunk`."""
    for _ in range(0, length, max(1, chunk)):
        engine.step([item(engine, cache, chunk, 0)])
        cache.keep(np.arange(chunk))


def item(engine: LoadedEngine, cache: Cache, rows: int, wanted: int) -> Item:
    """Return an item of any tokens; the logits of the last `wanted` rows are computed."""
    size = engine.facts.vocab_size
    tokens = np.random.default_rng(0).integers(min(FIRST_TOKEN, size // 2), size, rows)
    return Item(cache, tokens, None, np.arange(rows - wanted, rows))


def timed(engine: LoadedEngine, items: Sequence[Item]) -> float:
    """Return the milliseconds of a step."""
    began = time.perf_counter_ns()
    engine.step(items)
    return (time.perf_counter_ns() - began) / 1e6
