"""Intervals and tests of hypotheses: known values, and the rates at which they err."""

import numpy as np
import pytest

from specpipe.core.statistics import (
    BINS,
    bootstrap,
    bootstrap_difference,
    percentile,
    two_samples,
    uniformity,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(10, 10, 0.722, 1.0), (0, 10, 0.0, 0.278), (50, 100, 0.404, 0.596)],  # tabulated values
)
def test_the_binomial_interval_is_wilsons(right, total, low, high) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-3)


def test_the_bootstrap_covers_the_true_median_about_as_often_as_it_promises() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        low, high = bootstrap(rng.normal(3, 1, 25).tolist())
        covered += low <= 3 <= high
    assert covered >= 34  # 95 % of 40 is 38
    assert bootstrap([2.0]) == (2.0, 2.0)


def test_a_difference_of_medians_is_clear_only_if_there_is_one() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.normal(10, 1, 30).tolist(), rng.normal(10, 1, 30).tolist()
    low, high = bootstrap_difference(first, second)
    assert low < 0 < high
    low, high = bootstrap_difference(first, [value + 3 for value in second])
    assert 1.5 < low < high < 4.5


def test_equal_distributions_pass_and_different_ones_fail() -> None:
    rng = np.random.default_rng(3)
    alike = [two_samples([(rng.integers(0, 5, 40).tolist(), rng.integers(0, 5, 40).tolist())])
             for _ in range(20)]  # fmt: skip
    assert 0.1 < np.median(alike) <= 1 and min(alike) > 0.001
    mostly_zero = (rng.random(40) < 0.2).astype(int).tolist()
    assert two_samples([(mostly_zero, rng.integers(0, 5, 40).tolist())]) < 5e-4


def test_outcomes_that_occur_once_do_not_make_samples_differ() -> None:
    assert two_samples([(list(range(50)), list(range(50, 100)))]) == 1.0


def test_uniform_places_pass_and_others_fail() -> None:
    rng = np.random.default_rng(4)
    assert uniformity(rng.random(400).tolist()) > 0.01
    assert uniformity((rng.random(400) ** 1.5).tolist()) < 5e-4


def test_the_tail_of_the_chi_square_is_that_of_tables() -> None:
    """24.996 is the 95th percentile of the chi-square distribution with 15 degrees."""
    counts = np.full(BINS, 10_000.0)
    counts[0] += (24.996 * 10_000 / 2) ** 0.5
    counts[1] -= (24.996 * 10_000 / 2) ** 0.5
    places = [i / BINS + 1e-6 for i, count in enumerate(counts) for _ in range(round(count))]
    assert uniformity(places) == pytest.approx(0.05, abs=0.002)


def test_percentiles_are_interpolated() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.5
