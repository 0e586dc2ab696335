"""Drawn tokens against the whole distribution, and the set of top_p against a search for it."""

import numpy as np
import pytest

from specpipe.core.contracts import Logits, Sampling
from specpipe.core.errors import StageFailed
from specpipe.speculate import accept, drawing
from specpipe.speculate.drawing import draw_token
from specpipe.speculate.sampling import distribution
from specpipe.speculate.selection import Scale, top_p
from tests.helpers.distributions import excess
from tests.helpers.logits import every_kind, made

SIZE = 3_000  # more than `drawing.FEW`
DRAWS = 8_000
CLASSES = 20
BOUND = 6.0  # standard deviations: chi-square's tail is long, and there are 20 cases


def off(logits: Logits, options: Sampling) -> float:
    """Return how far drawn tokens are from the distribution; infinite if one is impossible."""
    probs, rng = distribution(logits, options), np.random.default_rng(5)
    head = drawing.head_of(logits, options.temperature)
    drawn = [head.draw(options.top_p, rng) for _ in range(DRAWS)]
    counts = np.bincount(drawn, minlength=len(logits))
    if counts[probs == 0].sum():
        return np.inf
    order = np.argsort(probs)
    rank = (np.cumsum(probs[order]) * CLASSES).astype(int)  # classes of equal weight, by likelihood
    by_class = [np.bincount(rank, weights=values[order]) for values in (probs, counts)]
    tables = [(by_class[0], by_class[1]), (probs, counts)]
    likely = [table for table in tables if np.count_nonzero(table[0] * DRAWS >= 10) > 1]
    return max((excess(*table) for table in likely), default=0.0)


@every_kind
@pytest.mark.parametrize("share", [1.0, 0.8])
def test_drawn_tokens_have_the_distribution_of_the_request(kind: str, share: float) -> None:
    options = Sampling(top_k=0, temperature=0.9, top_p=share)
    assert off(made(kind, SIZE), options) < BOUND


def test_a_bound_below_the_weights_at_the_border_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits, options = made("nearly flat", SIZE), Sampling(top_k=0)
    low = property(lambda head: head.scale.one(head.border) / 2)
    monkeypatch.setattr(drawing.Head, "bound", low)
    assert off(logits, options) > BOUND


@every_kind
@pytest.mark.parametrize("temperature", [0.05, 1.0, 1e10])
def test_a_token_is_kept_exactly_if_a_search_for_the_set_finds_it(
    kind: str, temperature: float
) -> None:
    logits = made(kind, SIZE)
    tried = np.argsort(-logits, kind="stable")[::7]
    for share in (0.5, 0.9, 1 - 1e-9):
        head = drawing.head_of(logits, temperature)
        places, _ = top_p(logits, temperature, share)
        # The last token of the set is left out: rounding may decide about it.
        edge = int(places[np.argmin(logits[places])])
        for token in tried.tolist():
            if logits[token] != logits[edge]:
                assert head.is_kept(token, share) == (token in places), (token, share)


@every_kind
def test_the_search_decides_where_sums_in_float32_cannot(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = made(kind, SIZE)
    head = drawing.head_of(logits, 1.0)
    tokens = np.argsort(-logits, kind="stable")[:: SIZE // 40].tolist()
    expected = [head.is_kept(token, 0.9) for token in tokens]
    monkeypatch.setattr(drawing, "error_of_rough", lambda rough_sum, count: 1e9)
    assert [drawing.head_of(logits, 1.0).is_kept(token, 0.9) for token in tokens] == expected


def test_the_head_is_a_few_percent_of_the_vocabulary() -> None:
    for kind in ("nearly flat", "spread", "peaked"):
        assert 0 < len(drawing.head_of(made(kind, 49_153), 1.0).places) < 49_153 / 25


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [1e-10, 1.0, 1e10])
def test_logits_of_any_size_and_temperature_give_a_possible_token(temperature: float) -> None:
    rng = np.random.default_rng(0)
    banned = np.full(SIZE, -np.inf, np.float32)
    banned[7] = -1e30
    for logits in (
        np.zeros(SIZE, np.float32),
        banned,
        (1e30 * rng.normal(size=SIZE)).astype(np.float32),
        np.where(np.arange(SIZE) % 5 == 0, 0, -1e9).astype(np.float32),
    ):
        probs = distribution(logits, Sampling(top_k=0, temperature=temperature))
        for share in (1.0, 0.9):
            options = Sampling(top_k=0, temperature=temperature, top_p=share)
            assert probs[draw_token(logits, options, rng)] > 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    logits = np.zeros(SIZE, np.float32) if np.isnan(value) else np.full(SIZE, -np.inf, np.float32)
    logits[9] = value
    with pytest.raises(StageFailed, match="the largest logit is -?(nan|inf): no token can"):
        draw_token(logits, Sampling(top_k=0), np.random.default_rng(0))


@pytest.mark.parametrize(
    "options",
    [
        Sampling(top_k=0, temperature=0.7),
        Sampling(top_k=0, top_p=0.8),
        Sampling(top_k=5),
        Sampling(top_k=40, top_p=0.7),
        Sampling(top_k=0, top_p=0.3),
    ],
)
def test_few_possible_tokens_are_drawn_from_all_their_weights(options: Sampling) -> None:
    """With the same random number as from the distribution."""
    size = SIZE if options.top_k or options.top_p < 0.5 else drawing.FEW
    logits = made("spread", size)
    probs = distribution(logits, options)
    for seed in range(50):
        drawn = draw_token(logits, options, np.random.default_rng(seed))
        assert drawn == accept.draw(probs, np.random.default_rng(seed))


@pytest.mark.parametrize("options", [Sampling(), Sampling(top_k=0, temperature=0.0)])
def test_greedy_options_draw_nothing(options: Sampling) -> None:
    logits = made("with ties", SIZE)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert draw_token(logits, options, rng) == int(np.argmax(logits))
    assert rng.bit_generator.state == before


def test_one_weight_is_that_of_all_weights() -> None:
    logits = made("peaked", SIZE)
    scale = Scale.of(logits, 0.3)
    ones = [scale.one(float(logit)) for logit in logits]
    np.testing.assert_allclose(ones, scale.exact(logits), rtol=1e-14)
