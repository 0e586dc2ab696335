"""From logits to distributions: values worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.speculate.sampling import (
    adjust,
    check_sampling,
    distribution,
    log_probability,
    top_log_probabilities,
)

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))


def sampled(**options) -> Sampling:
    return Sampling(**{"top_k": 0, **options})


def test_temperature_one_without_limits_is_the_softmax() -> None:
    np.testing.assert_allclose(distribution(LOGITS, sampled()), [0.5, 0.25, 0.125, 0.125])


def test_temperature_sharpens_and_flattens() -> None:
    np.testing.assert_allclose(
        distribution(LOGITS, sampled(temperature=0.5)),
        np.array([16, 4, 1, 1]) / 22,
        rtol=1e-6,
    )


def test_top_k_keeps_the_k_most_likely_and_breaks_ties_by_index() -> None:
    np.testing.assert_allclose(
        distribution(LOGITS, sampled(top_k=3)), np.array([4, 2, 1, 0]) / 7, rtol=1e-6
    )


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    np.testing.assert_allclose(
        distribution(LOGITS, sampled(top_p=0.6)), np.array([2, 1, 0, 0]) / 3, rtol=1e-6
    )
    np.testing.assert_allclose(distribution(LOGITS, sampled(top_p=0.5)), [1, 0, 0, 0])


@pytest.mark.parametrize("options", [Sampling(), sampled(temperature=0.0), sampled(top_k=1)])
def test_greedy_options_give_the_first_most_likely_token(options: Sampling) -> None:
    logits = np.array([1.0, 3.0, 3.0], np.float32)
    np.testing.assert_array_equal(distribution(logits, options), [0, 1, 0])


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    logits = np.array([2.0, -2.0, 1.0], np.float32)
    out = adjust(logits, sampled(repetition_penalty=2.0), [0, 1, 1], 3)
    np.testing.assert_allclose(out, [1.0, -4.0, 1.0])


def test_presence_counts_once_and_frequency_every_time() -> None:
    logits = np.zeros(3, np.float32)
    out = adjust(logits, sampled(presence_penalty=1.0, frequency_penalty=0.5), [0, 1, 1], 3)
    np.testing.assert_allclose(out, [-1.5, -2.0, 0.0])


def test_adjust_returns_the_same_array_where_nothing_is_asked() -> None:
    assert adjust(LOGITS, sampled(), [0, 1], 2) is LOGITS


def test_every_end_token_is_impossible_before_min_tokens() -> None:
    options = sampled(min_tokens=2, end_ids=(1, 3))
    assert adjust(LOGITS, options, [5], 1)[[1, 3]].tolist() == [-np.inf, -np.inf]
    assert adjust(LOGITS, options, [5, 5], 2) is LOGITS


def test_a_bad_word_is_banned_where_its_beginning_was_said() -> None:
    options = sampled(bad_words=((2, 3),))
    assert adjust(LOGITS, options, [0, 2], 2)[3] == -np.inf
    assert adjust(LOGITS, options, [2, 0], 2)[3] == LOGITS[3]


def test_a_bad_word_of_one_token_is_always_banned() -> None:
    assert adjust(LOGITS, sampled(bad_words=((3,),)), [], 0)[3] == -np.inf


def test_log_probability_ignores_sampling_options() -> None:
    assert log_probability(LOGITS, 1) == pytest.approx(math.log(0.25), abs=1e-6)


@pytest.mark.parametrize("spread", [1e-3, 1, 8, 1e4])
def test_log_probabilities_of_a_large_vocabulary_are_off_by_1e_5_at_most(
    spread: float, rng: np.random.Generator
) -> None:
    logits = (spread * rng.normal(size=150_000)).astype(np.float32)
    exact = np.exp(logits.astype(np.float64) - logits.max()).sum()
    expected = float(logits[5]) - float(logits.max()) - math.log(exact)
    assert log_probability(logits, 5) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_p", math.nan),
        ("repetition_penalty", 0.0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", -math.inf),
        ("min_tokens", -1),
        ("temperature", 1e-40),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 1e38),
        ("presence_penalty", 3e38),
        ("frequency_penalty", -3e38),
        ("bad_words", ((4,),)),
    ],
)
def test_values_that_make_no_sense_or_overflow_are_refused_by_name(
    name: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is "):
        check_sampling(Sampling(**{name: value}), vocab_size=4)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_penalties_leave_a_distribution_after_a_long_history(sign: int) -> None:
    options = sampled(
        temperature=1e-10,
        repetition_penalty=1000.0**sign,
        presence_penalty=sign * 1e6,
        frequency_penalty=sign * 1e6,
    )
    check_sampling(options, vocab_size=4)
    history = [0] * 1_000_000 + [1]
    probs = distribution(adjust(LOGITS, options, history, 0), options)
    assert np.isfinite(probs).all() and probs.sum() == pytest.approx(1)


@pytest.mark.parametrize("options", [sampled(), Sampling()])
def test_a_request_that_bans_every_token_is_refused(options: Sampling) -> None:
    banned = replace(options, bad_words=((0,), (1,), (2,)), min_tokens=1, end_ids=(3,))
    with pytest.raises(ConfigError, match="ban every token"):
        adjust(LOGITS, banned, [], 0)


@pytest.mark.parametrize("end_ids", [(4,), (0, -2)])
def test_an_end_token_that_the_vocabulary_lacks_is_refused(end_ids: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"^end_id is {end_ids[-1]}: must be -1"):
        check_sampling(Sampling(end_ids=end_ids), vocab_size=4)


@pytest.mark.parametrize("size", [4, 5000])
def test_the_likeliest_tokens_come_in_order_with_the_number_of_each(size: int) -> None:
    logits = np.round(3 * np.random.default_rng(size).normal(size=size), 1).astype(np.float32)
    order = np.argsort(-logits, kind="stable").tolist()
    for count in (1, 3, 4):
        found = top_log_probabilities(logits, count)
        assert [token for token, _ in found] == order[:count]
        assert all(value == log_probability(logits, token) for token, value in found)
