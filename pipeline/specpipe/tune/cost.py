"""What one step of an engine costs, by the number of rows that it scores: T(n), measured."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specpipe.contracts import EMPTY, Runner, Verdict, chain

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
ROUNDS = 7


@dataclass(frozen=True)
class CostCurve:
    """Milliseconds of a step by its rows; between the measured points it is a line."""

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Return the milliseconds of a step over `rows` rows.

        Beyond the last measured point the slope of the last two goes on.
        """
        if rows <= self.rows[-1]:
            return float(np.interp(rows, self.rows, self.ms))
        slope = (self.ms[-1] - self.ms[-2]) / (self.rows[-1] - self.rows[-2])
        return self.ms[-1] + max(slope, 0.0) * (rows - self.rows[-1])

    def break_even_batch(self, rows: float, tokens: float, most: int = 256) -> int:
        """Return the largest batch at which steps of `rows` rows and `tokens` tokens still pay.

        For engines that score a batch in one step: b sequences cost T(b * rows) with speculation,
        and T(b) without. 0: it does not even pay for one.
        """
        pays = [b for b in range(1, most + 1) if tokens * self(b) > self(b * rows)]
        return max(pays, default=0)


def measure_cost(runner: Runner, prefix: Sequence[int], most: int) -> CostCurve:
    """Time steps of up to `most` rows behind `prefix`; widths take turns, medians count.

    A wider step is never taken for cheaper than a narrower one: that is noise.
    """
    widths = [n for n in ROWS if n < most] + [most]
    runner.start(prefix)
    runner.score(EMPTY)
    samples: dict[int, list[float]] = {n: [] for n in widths}
    for turn in range(ROUNDS):
        for n in widths:
            step = _step(runner, n)
            if turn == 0:
                step()
            samples[n].append(timed_ms(step))
    medians = [statistics.median(samples[n]) for n in widths]
    return CostCurve(tuple(widths), tuple(float(m) for m in np.maximum.accumulate(medians)))


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
