"""What steps and drafts cost: the time of a step by its rows, and of drafts by their depth.

The time of a step is measured at start, then corrected; that of drafts is learned while serving.

A step with another number of rows than the one before costs more, since the CPU plugin prepares its
kernels for every change of shape.
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import Floats, Ints
from specpipe.core.engines import Cache, EngineFacts, Item, LoadedEngine
from specpipe.runtime.acceptance import DEPTHS
from specpipe.runtime.kalman import Kalman

ROWS = (1, 2, 4, 5, 8, 16, 32, 64)
SEQUENCES = 4  # with which the price of a draft in a batch is measured
TABULATED = 256  # rows
_PATIENCE_S = 0.6
_SLOW_MS = 40.0
_RATE = 0.1  # weight of one observation for the price of drafts
_TOGETHER = 4  # steps
_CHANGE_STEP = 0.02  # of a step's time, by which the price of a change moves to an observation
# Of the logarithms of times: standard deviations
_NOISE = 0.06  # of an observation, the median of _TOGETHER steps
_LEVEL, _LEVEL_STEP = 0.3, 0.1  # of the level: at start, and from one observation to the next
_WIDTH, _WIDTH_STEP = 0.15, 0.006  # of a width by the level
_ALIKE = 2.0  # widths with a ratio of 2 ** _ALIKE have deviations with a correlation of 1 / e


@dataclass
class StepCost:
    """Milliseconds of a step by its rows; between the measured points it is a line.

    The times that were measured at start are corrected by served steps. More sequences, longer
    contexts and other work on the machine make all widths slower by about the same factor, the
    *level*, which changes within seconds. What a width takes by the level hardly changes, but was
    measured in a moment, with one sequence. Both are estimated together (`Kalman`, of logarithms),
    so that widths that have not been seen for a while keep their proportion to the others.
    """

    rows: Floats  # [n]  ascending
    ms: Floats  # [n]  as measured at start
    change_ms: float = 0.0  # more, for a step of other rows than the one before
    draft_ms: float = 0.0  # more, for each sequence with a draft but the first: see `drafts_ms`
    last_rows: int = 0  # of the last observed step; 0: it read a prompt, or there was none
    _known: Kalman = field(init=False)  # the level, and the deviation of each point
    _now: Floats = field(init=False)  # [n]  milliseconds
    _table: Floats = field(init=False)  # [0 to some number of rows]  milliseconds
    _shares: dict[int, Floats] = field(default_factory=dict)  # rows -> weights of what is known
    _same: list[float] = field(default_factory=list)  # milliseconds of the last steps of a width

    def __post_init__(self) -> None:
        """Expect what was measured."""
        at_start = _covariance(self.rows, _LEVEL, _WIDTH)
        self._known = Kalman(at_start, _covariance(self.rows, _LEVEL_STEP, _WIDTH_STEP), _NOISE)
        self._now = self.ms.astype(np.float64)
        self._table = self._line(TABULATED)

    def __call__(self, rows: "int | Ints") -> Floats:
        """Return the milliseconds of steps of these rows.

        Beyond the last measured point, the slope of the last two continues.
        """
        try:
            return np.asarray(self._table[rows])
        except IndexError:
            self._table = self._line(2 * int(np.max(rows)))
            return np.asarray(self._table[rows])

    def _line(self, count: int) -> Floats:
        """Return the milliseconds of steps of 0 to `count` - 1 rows."""
        wanted = np.arange(count)
        inside = np.interp(wanted, self.rows, self._now)
        if len(self.rows) < 2:
            return inside
        slope = (self._now[-1] - self._now[-2]) / (self.rows[-1] - self.rows[-2])
        line: Floats = inside + np.maximum(wanted - self.rows[-1], 0.0) * slope
        return line

    def drafts_ms(self, drafts: "Ints | int") -> Floats:
        """Return the milliseconds that a step takes more with this number of sequences with drafts.

        Attention takes longer for the rows of several drafts. The measured steps have one sequence.
        """
        return np.asarray(self.draft_ms * (drafts - (drafts > 0)))

    def next(self, rows: Ints) -> Floats:
        """Return the milliseconds of the next step, for each number of rows that it may have."""
        return np.asarray(self(rows) + self.change_ms * (rows != self.last_rows))

    def observe(self, rows: int, ms: float, drafts: int = 0, *, reads: bool = False) -> None:
        """Correct the prices by one step, in which `drafts` sequences had a draft.

        The median of a few steps of a width counts. A step of another width than the one before
        corrects the price of a change only, which follows the median of what was seen. Rows of a
        prompt have other prices, so steps in which a sequence `reads` one are left out.
        """
        changed, self.last_rows = rows != self.last_rows, 0 if reads else rows
        if reads:
            return
        ms = max(ms - float(self.drafts_ms(drafts)), 1e-3)
        if changed and len(self.rows) > 1:
            self._same.clear()
            if rows <= self.rows[-1]:  # the prices of wider steps are only extrapolated
                self._correct_change(float(self(rows)), ms)
            return
        self._same.append(ms)
        if len(self._same) == _TOGETHER:
            self._correct(rows, statistics.median(self._same))
            self._same.clear()

    def _correct_change(self, expected: float, ms: float) -> None:
        step_ms = math.copysign(_CHANGE_STEP * expected, ms - expected - self.change_ms)
        self.change_ms = max(0.0, self.change_ms + step_ms)

    def _correct(self, rows: int, ms: float) -> None:
        shares = self._shares.get(rows)
        if shares is None:
            points = [np.interp(rows, self.rows, point) for point in np.eye(len(self.rows))]
            shares = self._shares[rows] = np.array([1.0, *points])
        self._known.observe(shares, math.log(ms / float(self(rows))))
        level, deviations = self._known.mean[0], self._known.mean[1:]
        now = self.ms * np.exp(level + deviations)
        self._now = np.maximum.accumulate(now)  # a step with more rows is not faster
        self._table = self._line(len(self._table))


def _covariance(rows: Floats, level: float, width: float) -> Floats:
    """Return [1 + n, 1 + n]: of the level and of the points, from their standard deviations."""
    logs = np.log2(rows)
    found = np.zeros((1 + len(rows), 1 + len(rows)))
    found[0, 0] = level**2
    found[1:, 1:] = width**2 * np.exp(-np.abs(logs[:, None] - logs) / _ALIKE)
    return found


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
    _seen: int = 0  # rounds with drafts

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
        self._seen += 1
        self.call_ms += max(_RATE, 1 / self._seen) * (ms / calls - self.call_ms)


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
    for place, rows in enumerate(widths):  # again, since other work disturbs for some time
        if time.perf_counter() - began > 1.5 * _PATIENCE_S:
            break
        times[place] = min(times[place], _time(engine, [rows]))
    least = np.minimum.accumulate(times[::-1])[::-1]  # other work makes steps longer, not shorter
    few, many = 0, min(2, len(widths) - 1)
    turns = _time(engine, [widths[few], widths[many]])
    change = max(0.0, turns - (least[few] + least[many]) / 2)
    cost = StepCost(np.array(widths, np.float64), least, change)
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
