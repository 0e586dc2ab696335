"""top_k and top_p against what a stable sort of the whole vocabulary gives, and transformers."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specpipe.core.contracts import Floats, Ints, Logits, Sampling
from specpipe.speculate import selection
from specpipe.speculate.sampling import distribution
from specpipe.speculate.selection import top_k, top_p
from tests.helpers.logits import every_kind, made

SIZES = [3, 600, 5_000, 49_153]


def in_order(logits: Logits) -> Ints:
    """Sort the tokens by a plain sort of pairs: likeliest first, then by index."""
    return np.lexsort((np.arange(len(logits)), -logits))


def by_sorting(logits: Logits, temperature: float, p: float) -> tuple[set[int], Floats, Floats]:
    """Return the set, and for every rank the weight and the share of what is before it."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = in_order(logits)
    before = (np.cumsum(weights[order]) - weights[order]) / weights.sum()
    return set(order[before < p].tolist()), weights, before


@every_kind
@pytest.mark.parametrize("size", SIZES)
def test_top_p_keeps_exactly_what_a_sort_of_all_tokens_keeps(kind: str, size: int) -> None:
    logits = made(kind, size)
    for temperature in (0.05, 1.0, 1e10):
        for p in (1e-9, 0.47, 0.9, 1 - 1e-9):
            expected, weights, before = by_sorting(logits, temperature, p)
            places, found = top_p(logits, temperature, p)
            assert len(set(places.tolist())) == len(places)
            if np.abs(before - p).min() > 1e-11:  # nearer is decided by rounding
                assert set(places.tolist()) == expected, (temperature, p)
            np.testing.assert_allclose(found, weights[places], rtol=1e-12)


def test_a_share_that_rounding_decides_is_off_by_one_token_at_most() -> None:
    for size in (4, 1000, 40_000):
        places, _ = top_p(np.zeros(size, np.float32), 1.0, 0.5)
        assert abs(len(places) - size // 2) <= 1
        np.testing.assert_array_equal(
            np.sort(places), np.arange(len(places))
        )  # of equals the first


@every_kind
@pytest.mark.parametrize("size", SIZES)
def test_top_k_keeps_exactly_the_first_of_a_sort_of_all_tokens(kind: str, size: int) -> None:
    logits = made(kind, size)
    for k in (1, 2, 50, 1000, size - 1):
        if k < size:
            assert top_k(logits, k).tolist() == sorted(in_order(logits)[:k].tolist())


@every_kind
def test_the_search_gives_the_same_where_rounding_misleads_all_of_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong border, and with sums that never decide, the slow ways give the same."""
    logits = made(kind, 5_000)
    expected = [top_p(logits, 1.0, p) for p in (0.1, 0.9)]
    for name, spoiled in {
        "error_of_rough": lambda rough_sum, count: 1e9,
        "find_border": lambda logits, weights, target: selection.Border(np.inf, np.arange(1)),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(selection, name, spoiled)
            for p, (places, weights) in zip((0.1, 0.9), expected, strict=True):
                slow, fast = top_p(logits, 1.0, p), np.argsort(places)
                in_place = np.argsort(slow[0])
                np.testing.assert_array_equal(slow[0][in_place], places[fast])
                np.testing.assert_allclose(slow[1][in_place], weights[fast], rtol=1e-12)


@every_kind
@pytest.mark.parametrize("size", SIZES)
def test_float32_sums_are_within_their_bound(kind: str, size: int) -> None:
    logits = made(kind, size)
    for temperature in (0.05, 1.0, 30.0):
        scale = selection.Scale.of(logits, temperature)
        rough = float(scale.rough(logits).sum(dtype=np.float64))
        off = abs(rough - scale.exact(logits).sum())
        assert off <= selection.error_of_rough(rough, size)


@every_kind
def test_the_distribution_is_that_of_transformers(kind: str) -> None:
    if kind in ("with ties", "in steps of bfloat16", "far apart", "few likely"):
        pytest.skip("transformers keeps all tokens that tie with the last, or overflows")
    logits = made(kind, 5_000)
    scores = torch.tensor(logits.astype(np.float64))[None]
    for options in (
        Sampling(top_k=0, temperature=0.8, top_p=0.9),
        Sampling(top_k=40, temperature=0.8, top_p=0.9),
        Sampling(top_k=3000, temperature=1.5, top_p=0.6),
    ):
        warped = TemperatureLogitsWarper(options.temperature)(None, scores)
        if options.top_k:
            warped = TopKLogitsWarper(options.top_k)(None, warped)
        expected = torch.softmax(TopPLogitsWarper(options.top_p)(None, warped), -1)[0]
        np.testing.assert_allclose(distribution(logits, options), expected.numpy(), atol=1e-12)
