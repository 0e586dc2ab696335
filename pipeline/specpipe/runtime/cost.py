"""What steps and drafts cost: the time of a step by its rows, and of drafts by their depth.

The time of a step is measured at start, then corrected; that of drafts is learned while serving.

A step with another number of rows than the one before costs more, since the CPU plugin prepares its
kernels for every change of shape.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import Floats, Ints
from specpipe.core.engines import Cache, EngineFacts, Item, LoadedEngine
from specpipe.runtime.acceptance import DEPTHS

ROWS = (1, 2, 4, 5, 8, 16, 32, 64)
SEQUENCES = 4  # with which the price of a draft in a batch is measured
_PATIENCE_S = 0.6
_SLOW_MS = 40.0
_RATE = 0.1  # weight of one observation for what it shows: the price of a width, or of drafts
_STEP = 0.05  # by which the price of a change moves towards an observation
_MOST = 1.5  # times what is known: a step that was interrupted counts no more
_DRIFT = 0.01  # for the level of all prices: other work on the machine, its temperature


@dataclass
class StepCost:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: Floats  # [n]  ascending
    ms: Floats  # [n]
    change_ms: float = 0.0  # more, for a step of other rows than the one before
    draft_ms: float = 0.0  # more, for each sequence with a draft but the first: see `drafts_ms`
    last_rows: int = 0  # of the last observed step
    _factor: float = field(default=1.0)  # of the last steps, by what was measured at start
    start: Floats = field(init=False)  # [n]  `ms` as it was measured

    def __post_init__(self) -> None:
        """Keep what was measured."""
        self.start = self.ms.astype(np.float64)

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

    def drafts_ms(self, drafts: "Ints | int") -> Floats:
        """Return the milliseconds that a step takes more with this number of sequences with drafts.

        Attention takes longer for the rows of several drafts. The measured steps have one sequence.
        """
        return np.asarray(self.draft_ms * np.maximum(0, np.asarray(drafts) - 1))

    def next(self, rows: Ints) -> Floats:
        """Return the milliseconds of the next step, for each number of rows that it may have."""
        changes = self._factor * self.change_ms * (rows != self.last_rows)
        return np.asarray(self(rows) + changes)

    def observe(self, rows: int, ms: float, drafts: int = 0) -> None:
        """Correct the curve by one step: the level of all points, and the nearest and wider ones.

        `drafts` sequences had a draft.

        A step of another width than the one before corrects the price of a change, which follows
        the median of what was seen.
        More sequences, longer contexts and other work on the machine make steps of all widths
        slower by about the same factor, so the wider points move along. The narrower ones do not: a
        step may take longer for dear draft rows. But a row never becomes cheaper than at start:
        else steps with drafts would keep an old, dear price of steps without.
        """
        known, ms = float(self.next(np.array([rows]))[0]), ms - float(self.drafts_ms(drafts))
        changed, self.last_rows = rows != self.last_rows, rows
        if changed and self.change_ms and rows <= self.rows[-1]:
            self.change_ms *= 1 + (_STEP if ms > known else -_STEP)
            return
        place = int(np.argmin(np.abs(self.rows - rows)))
        ratio = min(_MOST, max(1 / _MOST, ms / known)) if known > 0 else 1.0
        self._factor *= 1 + _DRIFT * (ratio - 1)
        self.ms[place:] *= 1 + _RATE * (ratio - 1)
        at_start = self.ms[place] * self.start[:place] / self.start[place]
        self.ms[:place] = np.minimum(self.ms[:place], at_start)


@dataclass
class DraftingCost:
    """Milliseconds of the drafts of a round, which share the calls of their drafter.

    A call of a drafter serves all streams of a round, and hardly takes longer for more of them. How
    many calls a draft needs depends on the drafter: heads are called once, a recurrent drafter once
    for each level. It is learned by the depth that was allowed; between two depths it is a line.
    """

    call_ms: float = 0.0
    plain_ms: float = 0.0  # of a round without drafts, without the target's step
    _calls: dict[int, float] = field(default_factory=lambda: {1: 1.0})  # by depth

    def __call__(self, depth: "Ints | int") -> Floats:
        """Return the milliseconds of drafts of these depths."""
        known = sorted(self._calls)
        calls = np.interp(depth, known, [self._calls[n] for n in known])
        return np.asarray(self.call_ms * calls)

    def observe(self, depth: int, calls: int, ms: float) -> None:
        """Take note of a round: its deepest draft (0: none), the calls, and its time.

        The time is that without the target's step: calls, and the choice and the check of drafts.
        """
        if depth == 0:
            self.plain_ms += _RATE * (ms - self.plain_ms)
            return
        calls, depth, ms = max(1, calls), min(depth, DEPTHS), max(0.0, ms - self.plain_ms)
        known = self._calls.get(depth, float(calls))
        self._calls[depth] = known + _RATE * (calls - known)
        self.call_ms += (_RATE if self.call_ms else 1.0) * (ms / calls - self.call_ms)


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
    cost = StepCost(np.array(widths, np.float64), rising, change)
    if most >= 2 * SEQUENCES and times[few] < _SLOW_MS:
        plain, drafting = (_time_together(engine, rows) for rows in (1, 2))
        more = drafting - plain - float(cost(2 * SEQUENCES) - cost(SEQUENCES))
        cost.draft_ms = max(0.0, more) / SEQUENCES
    return cost


def _time_together(engine: LoadedEngine, rows: int) -> float:
    """Return the milliseconds of a step of some sequences with these rows each; 0: no room."""
    items = [_item(engine, engine.open(), rows) for _ in range(SEQUENCES)]
    ms = _least(engine, [items]) if engine.fits(items) else 0.0
    for item in items:
        item.cache.release()
    return ms


def _time(engine: LoadedEngine, widths: Sequence[int]) -> float:
    """Return the milliseconds of a step at the start of a sequence, widths taking turns."""
    cache = engine.open()
    ms = _least(engine, [[_item(engine, cache, rows)] for rows in widths])
    cache.release()
    return ms


def _least(engine: LoadedEngine, steps: Sequence[Sequence[Item]]) -> float:
    """Return the mean milliseconds of steps that take turns.

    The least of a few repetitions counts. Slow steps are repeated once.
    """
    found: list[float] = []
    while len(found) < 3 and (len(found) < 2 or found[-1] < _SLOW_MS):
        began = time.perf_counter_ns()
        for items in steps:
            engine.step(items)
        found.append((time.perf_counter_ns() - began) / 1e6 / len(steps))
    return min(found[1:])


def _item(engine: LoadedEngine, cache: Cache, rows: int) -> Item:
    return Item(cache, _tokens(engine.facts, rows), None, np.arange(rows))


def _tokens(facts: EngineFacts, rows: int) -> Ints:
    return np.arange(rows, dtype=np.int64) % facts.vocab_size
