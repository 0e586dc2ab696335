"""What one step of an engine costs, by the number of rows that it scores: T(n), measured."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specpipe.contracts import EMPTY, LoadedEngine, Role, Runner, Verdict, chain
from specpipe.errors import ConfigError
from specpipe.tune.trace import GuesserKind

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # and the widest that there can be
TURNS, STEPS = 5, 5
MOST_ROWS = 65  # root and the widest tree that is tried


@dataclass(frozen=True)
class CostCurve:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Return the milliseconds of a step over `rows` rows.

        Beyond the last measured point the slope of the last two goes on; of one point it is 0.
        """
        if rows <= self.rows[-1] or len(self.rows) == 1:
            return float(np.interp(rows, self.rows, self.ms))
        slope = (self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
        return self.ms[-1] + max(slope, 0.0) * (rows - self.rows[-1])

    def break_even_batch(self, rows: float, tokens: float, most: int = 256) -> int:
        """Return the largest batch at which steps of `rows` rows and `tokens` tokens are faster.

        For engines that score a batch in one step: b sequences cost T(b * rows) with speculation,
        and T(b) without. 0: speculation is not faster even at batch 1.
        """
        pays = [b for b in range(1, most + 1) if tokens * self(b) > self(b * rows)]
        return max(pays, default=0)


@dataclass(frozen=True)
class Costs:
    """The times of the parts of a step on one machine, in milliseconds."""

    step: CostCurve  # of the target
    heads_ms: float = 0.0  # the heads, once; a drafter, one level
    draft_ms: float = 0.0  # one token of the draft model
    handover_ms: float = 0.0  # between two engines, a step that drafts with the draft model
    pads_steps: bool = False  # see `LoadedEngine.pads_steps`
    change_ms: float = 0.0  # more, for a step of other rows than the one before


def read_costs(path: Path) -> Costs:
    """Read the costs of another machine, e.g. from a GPU profile, out of a JSON file.

    `{"step_ms": {"1": 14.0, "8": 14.6, "64": 21.0}, "heads_ms": 0.4, "draft_ms": 3.1}`; the rows
    must rise. Raises ConfigError if it is anything else.
    """
    try:
        raw = json.loads(_text(path))
        points = sorted((int(rows), _ms(ms)) for rows, ms in raw.pop("step_ms").items())
        curve = CostCurve(tuple(n for n, _ in points), tuple(ms for _, ms in points))
        if len(points) < 2 or points[0][0] != 1 or min(curve.ms) <= 0:
            raise ValueError("step_ms needs two points or more, from 1 row on, all above 0")
        pads = raw.pop("pads_steps", False)
        if not isinstance(pads, bool) or raw.keys() - set(_PARTS):
            raise ValueError(
                f"in addition to step_ms it may have {', '.join(_PARTS)} and pads_steps"
            )
        parts = {name: _ms(value) for name, value in raw.items()}
        return Costs(curve, pads_steps=pads, **parts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not a cost model: {error}",
            hint='e.g. {"step_ms": {"1": 14.0, "8": 14.6}, "heads_ms": 0.4, "draft_ms": 3.1}',
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="give --cost-model a JSON file"
        ) from error


_PARTS = ("heads_ms", "draft_ms", "handover_ms", "change_ms")


def _ms(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number of milliseconds")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} ms cannot be")
    return float(value)


def measure_costs(
    engines: Mapping[Role, LoadedEngine],
    runners: Mapping[Role, Runner],
    prefix: Sequence[int],
    *,
    guesser: GuesserKind | None,
    beams: int = 1,
) -> Costs:
    """Time the engines of a deployment behind `prefix`; a drafter continues `beams` paths."""
    most = min(MOST_ROWS, engines["target"].max_seq_len - len(prefix))
    step, change_ms = measure_cost(runners["target"], prefix, most)
    heads = _guess_ms(runners["target"], guesser, beams) if guesser else 0.0
    draft = measure_cost(runners["draft"], prefix, 2)[0].ms[0] if "draft" in runners else 0.0
    pads = engines["target"].pads_steps
    return Costs(step, heads, draft, pads_steps=pads, change_ms=change_ms)


def _guess_ms(runner: Runner, guesser: GuesserKind, beams: int) -> float:
    hidden = runner.score(EMPTY).hidden
    assert hidden is not None
    row = hidden[0].copy()
    states, tokens = np.zeros((beams, len(row)), np.float32), np.zeros(beams, np.int64)
    ask: dict[GuesserKind, Callable[[], object]] = {
        "heads": lambda: runner.guess(row),
        "drafter": lambda: runner.extend(row, states, tokens),
    }
    return statistics.median(timed_ms(ask[guesser]) for _ in range(TURNS * STEPS))


def measure_cost(runner: Runner, prefix: Sequence[int], most: int) -> tuple[CostCurve, float]:
    """Time steps of up to `most` rows behind `prefix`; widths take turns, medians count.

    Returns the times of steps that follow one of their own width, and the milliseconds that a
    change of width costs. A wider step is never taken for cheaper than a narrower one: where that
    was measured, both get their mean.
    """
    widths = [n for n in ROWS if n < most] + [most]
    runner.start(prefix)
    runner.score(EMPTY)
    commit_one(runner, 7)  # else every step would read the prefix again
    samples: dict[int, list[float]] = {n: [] for n in widths}
    changes = []
    for turn in range(TURNS):
        for n in widths:
            step = _step(runner, n)
            first, times = timed_ms(step), [timed_ms(step) for _ in range(STEPS)]
            samples[n] += times
            if turn:  # a width that was never seen costs even more
                changes.append(first - statistics.median(times))
    medians = [statistics.median(samples[n]) for n in widths]
    return CostCurve(tuple(widths), rising(medians)), max(0.0, statistics.median(changes))


def rising(values: Sequence[float]) -> tuple[float, ...]:
    """Return the nearest values, by least squares, that never fall (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] > mean:
            last, more = blocks.pop()
            mean = (mean * count + last * more) / (count + more)
            count += more
        blocks.append((mean, count))
    return tuple(mean for mean, count in blocks for _ in range(count))


def _step(runner: Runner, rows: int) -> Callable[[], None]:
    draft = chain([7] * (rows - 1))

    def step() -> None:
        runner.score(draft).logits.argmax(-1)

    return step


def timed_ms(call: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6


def commit_one(runner: Runner, token: int) -> None:
    """Append one token to a runner's sequence."""
    runner.commit(EMPTY, Verdict((), token))
