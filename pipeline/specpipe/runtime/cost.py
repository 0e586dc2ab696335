"""The time of an engine's step by its rows: measured at start, then corrected.

A step with another number of rows than the one before costs more, since the CPU plugin prepares its
kernels for every change of shape.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import Floats, Ints
from specpipe.core.engines import EngineFacts, Item, LoadedEngine

ROWS = (1, 2, 4, 5, 8, 16, 32, 64)
_PATIENCE_S = 0.6
_SLOW_MS = 40.0
_RATE = 0.05  # weight of one observation


@dataclass
class StepCost:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: Floats  # [n]  ascending
    ms: Floats  # [n]
    change_ms: float = 0.0  # more, for a step of other rows than the one before
    last_rows: int = 0  # of the last observed step
    _factor: float = field(default=1.0)  # of the last steps, by what was measured at start

    def __call__(self, rows: "float | Floats | Ints") -> Floats:
        """Return the milliseconds of steps of these rows.

        Beyond the last measured point, the slope of the last two continues.
        """
        wanted = np.asarray(rows, np.float64)
        inside = np.interp(wanted, self.rows, self.ms)
        if len(self.rows) < 2:
            return np.asarray(self._factor * inside)
        slope = (self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
        beyond = np.maximum(wanted - self.rows[-1], 0.0) * max(slope, 0.0)
        return np.asarray(self._factor * (inside + beyond))

    def next(self, rows: Ints) -> Floats:
        """Return the milliseconds of the next step, for each number of rows that it may have."""
        changes = self._factor * self.change_ms * (rows != self.last_rows)
        return np.asarray(self(rows) + changes)

    def observe(self, rows: int, ms: float) -> None:
        """Correct the curve by one step: the level of all points, and the nearest and wider ones.

        A step of another width than the one before corrects the price of a change, which follows
        the median of what was seen.
        More sequences and longer contexts make a step slower by an amount that more rows of the
        same sequences do not change. So the wider points move along, and a row keeps its price.
        """
        known = float(self.next(np.array([rows]))[0])
        changed, self.last_rows = rows != self.last_rows, rows
        if changed and self.change_ms and rows <= self.rows[-1]:
            self.change_ms *= 1 + (_RATE if ms > known else -_RATE)
            return
        place = int(np.argmin(np.abs(self.rows - rows)))
        ratio = min(4.0, max(0.25, ms / known)) if known > 0 else 1.0
        self._factor *= 1 + _RATE * (ratio - 1)
        self.ms[place:] += self.ms[place] * _RATE * (ratio - 1)


def flat() -> StepCost:
    """Return the cost of an engine that was not measured: the same for every number of rows."""
    return StepCost(np.ones(1), np.ones(1))


def measure_steps(engine: LoadedEngine, most: int) -> StepCost:
    """Time steps of up to `most` rows of one sequence.

    Wider steps are left out once `_PATIENCE_S` are spent; three widths are always measured.
    """
    widths = [rows for rows in ROWS if rows <= min(most, engine.facts.max_seq_len)]
    times: list[float] = []
    began = time.perf_counter()
    for rows in widths:
        if len(times) >= 3 and time.perf_counter() - began > _PATIENCE_S:
            break
        times.append(_time(engine, [rows]))
    widths = widths[: len(times)]
    rising = np.maximum.accumulate(times)
    few, many = 0, min(2, len(widths) - 1)
    turns = _time(engine, [widths[few], widths[many]])
    change = max(0.0, turns - (times[few] + times[many]) / 2)
    return StepCost(np.array(widths, np.float64), rising, change)


def _time(engine: LoadedEngine, widths: Sequence[int]) -> float:
    """Return the milliseconds of a step at the start of a sequence, widths taking turns.

    The least of a few repetitions counts, of the mean over the widths. Slow steps are repeated
    once.
    """
    found: list[float] = []
    cache = engine.open()
    items = [Item(cache, _tokens(engine.facts, n), None, np.arange(n)) for n in widths]
    while len(found) < 3 and (len(found) < 2 or found[-1] < _SLOW_MS):
        began = time.perf_counter_ns()
        for item in items:
            engine.step([item])
        found.append((time.perf_counter_ns() - began) / 1e6 / len(items))
    cache.release()
    return min(found[1:])


def _tokens(facts: EngineFacts, rows: int) -> Ints:
    return np.arange(rows, dtype=np.int64) % facts.vocab_size
