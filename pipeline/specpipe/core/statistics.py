"""Intervals and tests: bootstrap, binomial, two samples, uniformity. All draws have a seed.

Wilson's interval: E. B. Wilson, "Probable inference", JASA 1927, equation for the limits.
Percentile bootstrap: B. Efron, "Bootstrap methods", Annals of Statistics 1979.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

RESAMPLES = 2000
PERMUTATIONS = 4000  # at most
ENOUGH = 20  # permutations that are at least as uneven end the search
BINS = 16  # of the test of uniformity


def bootstrap(
    samples: Sequence[float],
    statistic: Callable[[np.ndarray], np.ndarray] = lambda rows: np.median(rows, axis=-1),  # type: ignore[type-arg]
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of rows; `samples` has at least one value."""
    values = np.array(samples, np.float64)
    rng = np.random.default_rng(0)
    found = statistic(values[rng.integers(0, len(values), (RESAMPLES, len(values)))])
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], level: float = 0.95
) -> tuple[float, float]:
    """Return the interval of median(second) - median(first), both resampled."""
    rng = np.random.default_rng(0)
    medians = []
    for samples in (first, second):
        values = np.array(samples, np.float64)
        rows = values[rng.integers(0, len(values), (RESAMPLES, len(values)))]
        medians.append(np.median(rows, axis=1))
    low, high = np.quantile(medians[1] - medians[0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share; `trials` is at least one."""
    share, square = successes / trials, z * z
    middle = share + square / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    scale = 1 + square / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def percentile(samples: Sequence[float], share: float) -> float:
    """Return a percentile of samples by linear interpolation, at least one."""
    return float(np.quantile(np.array(samples, np.float64), share))


def two_samples(groups: Sequence[tuple[Sequence[Hashable], Sequence[Hashable]]]) -> float:
    """Return the p-value of the hypothesis that both samples of every group are drawn alike.

    An outcome is any hashable value. The statistic is the sum over groups and outcomes of
    (a - b)^2 / (a + b), with the shares of both samples. Its distribution is that of random
    permutations within the groups, so it is exact for rare outcomes as well. They end early where
    the p-value is large (J. Besag and P. Clifford, "Sequential Monte Carlo p-values", Biometrika
    1991).
    """
    rng = np.random.default_rng(0)
    tables = [_encoded(first, second) for first, second in groups if first and second]
    seen = sum(_imbalance(codes, size) for codes, size in tables)
    higher = 0
    for drawn in range(1, PERMUTATIONS + 1):
        uneven = sum(_imbalance(rng.permutation(codes), size) for codes, size in tables)
        higher += uneven >= seen - 1e-9
        if higher == ENOUGH:
            return higher / drawn
    return (1 + higher) / (1 + PERMUTATIONS)


def _encoded(
    first: Sequence[Hashable], second: Sequence[Hashable]
) -> tuple["np.ndarray[tuple[int], np.dtype[np.int64]]", int]:
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault(outcome, len(numbers)) for outcome in (*first, *second)]
    return np.array(codes, np.int64), len(first)


def _imbalance(codes: "np.ndarray[tuple[int], np.dtype[np.int64]]", size: int) -> float:
    kinds = int(codes.max()) + 1
    ours = np.bincount(codes[:size], minlength=kinds) / size
    theirs = np.bincount(codes[size:], minlength=kinds) / (len(codes) - size)
    return float(np.sum((ours - theirs) ** 2 / np.maximum(ours + theirs, 1e-12)))


def uniformity(values: Sequence[float]) -> float:
    """Return the p-value of the hypothesis that values are drawn uniformly from [0, 1).

    Pearson's chi-square test with equal bins; its tail by the Wilson-Hilferty approximation
    (PNAS 1931).
    """
    counts = np.bincount(
        np.minimum((np.array(values) * BINS).astype(int), BINS - 1), minlength=BINS
    )
    expected = len(values) / BINS
    chi_square = float(np.sum((counts - expected) ** 2) / expected)
    freedom = BINS - 1
    spread = 2 / (9 * freedom)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))
