"""What a step of an engine costs, by the rows that it scores: measured at start, then corrected."""

import time
from dataclasses import dataclass, field

import numpy as np

from specpipe.contracts import EngineFacts, Floats, Ints, Item, LoadedEngine

ROWS = (1, 2, 4, 5, 8, 16, 32, 64)
REPEATS = 2  # of each, after one that is not counted
_RATE = 0.05  # weight of one observation


@dataclass
class StepCost:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: Floats  # [n]  ascending
    ms: Floats  # [n]
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

    def observe(self, rows: int, ms: float) -> None:
        """Correct the curve by one step: the nearest point, and the level of all points.

        Longer contexts make every step slower; other widths are judged by their points.
        """
        place = int(np.argmin(np.abs(self.rows - rows)))
        known = float(self(rows))
        ratio = min(4.0, max(0.25, ms / known)) if known > 0 else 1.0
        self._factor *= 1 + _RATE * (ratio - 1)
        self.ms[place] *= 1 + _RATE * (ratio - 1)


FLAT = StepCost(np.ones(1), np.ones(1))


def measure_steps(engine: LoadedEngine, most: int) -> StepCost:
    """Time steps of up to `most` rows of one sequence, each width a few times.

    Takes well under a second for small models.
    """
    widths = [rows for rows in ROWS if rows <= min(most, engine.facts.max_seq_len)]
    times = {rows: _time(engine, rows) for rows in widths}
    rising = np.maximum.accumulate([times[rows] for rows in widths])
    return StepCost(np.array(widths, np.float64), rising)


def _time(engine: LoadedEngine, rows: int) -> float:
    """Return the least milliseconds of some steps of `rows` rows at the start of a sequence."""
    found: list[float] = []
    cache = engine.open()
    item = Item(cache, _tokens(engine.facts, rows), None, np.arange(rows))
    for _ in range(1 + REPEATS):
        began = time.perf_counter_ns()
        engine.step([item])
        found.append((time.perf_counter_ns() - began) / 1e6)
    cache.release()
    return min(found[1:])


def _tokens(facts: EngineFacts, rows: int) -> Ints:
    return np.arange(rows, dtype=np.int64) % facts.vocab_size
