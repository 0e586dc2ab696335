"""Measures the time of an engine's step by the number of rows that it scores."""

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from specpipe.core.contracts import EMPTY, Role, chain
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import ConfigError
from specpipe.plan.roofline_file import KIND, Rooflines, read_rooflines
from specpipe.runtime.cost import StepCost
from specpipe.runtime.lane import Lane
from specpipe.tune.trace import DrafterKind

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)  # and the widest that there can be
TURNS, STEPS = 5, 5
TOKEN = 7  # any one will do
MOST_ROWS = 65  # root and the widest tree that is tried


@dataclass(frozen=True)
class CostCurve:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Return the milliseconds of a step over `rows` rows; see `StepCost`."""
        return float(self._steps(rows))

    def measured(self) -> StepCost:
        """Return the curve as serving uses it, for a budget that may correct it."""
        return StepCost(np.array(self.rows, np.float64), np.array(self.ms, np.float64))

    @cached_property
    def _steps(self) -> StepCost:
        return self.measured()

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
    estimated: bool = False  # computed from data sheets, not measured

    def drafting_ms(self, head_calls: int, draft_calls: int) -> float:
        """Return the price of the drafters' calls in one step."""
        handover_ms = self.handover_ms if draft_calls else 0.0
        return head_calls * self.heads_ms + draft_calls * self.draft_ms + handover_ms


def read_costs(path: Path) -> Costs | Rooflines:
    """Read step times, measured elsewhere, or the GPUs to compute them for, from a JSON file.

    `{"step_ms": {"1": 14.0, "8": 14.6, "64": 21.0}, "heads_ms": 0.4, "draft_ms": 3.1}`; the rows
    must rise. `estimated`, `source` and `conditions` tell where they come from. `pads_steps` and
    `change_ms`, which older files have, are read and have no effect. `{"kind": "roofline"}` is a
    file of GPUs (`plan.roofline_file`). Raises ConfigError if it is anything else.
    """
    try:
        raw = json.loads(_text(path))
        if isinstance(raw, dict) and raw.get("kind") == KIND:
            return read_rooflines(raw, str(path))
        return _costs(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: not a cost model: {error}",
            hint='e.g. {"step_ms": {"1": 14.0, "8": 14.6}, "heads_ms": 0.4, "draft_ms": 3.1}',
        ) from error


def _costs(raw: dict[str, Any]) -> Costs:
    points = sorted((int(rows), _ms(ms)) for rows, ms in raw.pop("step_ms").items())
    curve = CostCurve(tuple(n for n, _ in points), tuple(ms for _, ms in points))
    if len(points) < 2 or points[0][0] != 1 or min(curve.ms) <= 0:
        raise ValueError("step_ms needs two points or more, from 1 row on, all above 0")
    _ms(raw.pop("change_ms", 0.0))
    estimated = raw.pop("estimated", False)
    flags = (raw.pop("pads_steps", False), estimated)
    if not all(isinstance(flag, bool) for flag in flags) or raw.keys() - {*_PARTS, *_ORIGIN}:
        raise ValueError(
            f"in addition to step_ms it may have {', '.join((*_PARTS, *_ORIGIN))}, estimated "
            "(true or false), and pads_steps"
        )
    heads, draft, handover = (_ms(raw.get(name, 0.0)) for name in _PARTS)
    return Costs(curve, heads, draft, handover, estimated)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="give --cost-model a JSON file"
        ) from error


_PARTS = ("heads_ms", "draft_ms", "handover_ms")
_ORIGIN = ("source", "conditions")  # for people


def _ms(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number of milliseconds")
    if not 0 <= value < math.inf:
        raise ValueError(f"{value} ms cannot be")
    return float(value)


def measure_costs(
    engines: Mapping[Role, LoadedEngine],
    prefix: Sequence[int],
    *,
    drafter: DrafterKind | None,
    beams: int = 1,
) -> Costs:
    """Time the engines of a deployment behind `prefix`; a drafter continues `beams` paths."""
    target = engines["target"]
    step = measure_cost(target, prefix, min(MOST_ROWS, target.facts.max_seq_len - len(prefix)))
    heads = _drafter_ms(target, prefix, drafter, beams) if drafter else 0.0
    draft = measure_cost(engines["draft"], prefix, 2).ms[0] if "draft" in engines else 0.0
    return Costs(step, heads, draft)


def _drafter_ms(
    engine: LoadedEngine, prefix: Sequence[int], drafter: DrafterKind, beams: int
) -> float:
    lane = Lane(engine)
    lane.follow(prefix)
    hidden = engine.step([lane.whole(EMPTY)])[0].hidden
    lane.release()
    assert hidden is not None
    row = hidden[:1].copy()
    rows, tokens = np.repeat(row, beams, axis=0), np.zeros(beams, np.int64)
    call: dict[DrafterKind, Callable[[], object]] = {
        "heads": lambda: engine.guess(row),
        "redrafter": lambda: engine.extend(rows, np.zeros_like(rows), tokens),
    }
    return statistics.median(timed_ms(call[drafter]) for _ in range(TURNS * STEPS))


def measure_cost(engine: LoadedEngine, prefix: Sequence[int], most: int) -> CostCurve:
    """Time steps of up to `most` rows behind `prefix`; widths take turns, medians count.

    A wider step is never taken for cheaper than a narrower one: where that was measured, both get
    their mean. The first step of each turn of a width is not counted.
    """
    widths = [n for n in ROWS if n < most] + [most]
    lane = Lane(engine)
    _read(lane, prefix)
    lane.follow([*prefix, TOKEN])
    samples: dict[int, list[float]] = {n: [] for n in widths}
    for _ in range(TURNS):
        for n in widths:
            item = lane.whole(chain([TOKEN] * (n - 1)))
            step = partial(engine.step, [item])
            step()
            samples[n] += [timed_ms(step) for _ in range(STEPS)]
    lane.release()
    medians = [statistics.median(samples[n]) for n in widths]
    return CostCurve(tuple(widths), rising(medians))


def _read(lane: Lane, prefix: Sequence[int]) -> None:
    """Run the prefix once, or else every step would run it again."""
    lane.follow(prefix)
    item = lane.whole(EMPTY)
    lane.engine.step([item])
    lane.done(item)


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


def timed_ms(call: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1e6
