"""Loads: how many requests are in flight, when they arrive, and the figures of a load by hand."""

import threading

import pytest

from specpipe.config.validation import Slo
from specpipe.validate.answers import Answer
from specpipe.validate.depths import by_depth
from specpipe.validate.load import ClosedLoop, OpenLoop, run_load
from specpipe.validate.load_figures import LoadPoint, break_even, load_points
from specpipe.validate.scenarios.acceptance import bucket
from specpipe.validate.scenarios.long import repetition


def test_a_closed_loop_has_every_client_in_flight_and_keeps_the_order() -> None:
    meeting = threading.Barrier(3, timeout=30)  # breaks unless three requests are in flight

    def job(number: int) -> int:
        meeting.wait()
        return number

    jobs = [lambda n=n: job(n) for n in range(6)]
    found, seconds = run_load(ClosedLoop(3), jobs)
    assert [sent.result for sent in found] == list(range(6)) and seconds > 0


def test_an_open_loop_sends_without_waiting_for_answers() -> None:
    meeting = threading.Barrier(5, timeout=30)
    found, _ = run_load(OpenLoop(1000), [meeting.wait] * 5)
    assert len(found) == 5


def test_arrivals_have_the_rate_of_the_loop_and_are_the_same_again() -> None:
    arrivals = OpenLoop(4.0).arrivals(4001)
    assert arrivals[0] == 0 and arrivals[-1] / 4000 == pytest.approx(1 / 4, rel=0.05)
    assert arrivals == OpenLoop(4.0).arrivals(4001) == sorted(arrivals)


def test_an_exception_ends_the_load() -> None:
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_load(ClosedLoop(2), [fail] * 4)


def answer(*times_s: float, tokens: int = 5, error: str | None = None) -> Answer:
    return Answer("concurrency", "prompts", 0, "plain", "2 clients", None, "abc", (), tokens,
                  (1, 2), 0.0, 1, times_s, error=error)  # fmt: skip


def test_the_figures_of_a_load_by_hand() -> None:
    answers = [answer(0.1, 0.3, 0.5), answer(0.3, 0.7), answer(0.0, error="refused")]
    (point,) = load_points(answers, {("2 clients", "plain"): 2.0}, Slo(ttft_ms=200, tpot_ms=150))
    assert (point.clients, point.requests, point.failed) == (2, 3, 1)
    assert point.tokens_per_s == 5.0 and point.requests_per_s == 1.0
    assert point.goodput == 0.5  # the second is too late
    assert point.ttft_ms[0] == pytest.approx(200) and point.tpot_ms[0] == pytest.approx(100)
    assert point.gap_ms[0] == pytest.approx(200)


def points(**rates: tuple[float, float]) -> list[LoadPoint]:
    return [
        LoadPoint(f"{name[1:]} clients", arm, int(name[1:]), 1, 0, rate, 1, 1, (), (), ())
        for name, both in rates.items()
        for arm, rate in zip(("plain", "speculative"), both, strict=True)
    ]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"c1": (10, 15), "c2": (20, 15)}, "faster below 1.7 clients"),
        ({"c1": (10, 15), "c4": (20, 21)}, "faster with up to 4 clients, the most"),
        ({"c1": (10, 9), "c4": (20, 18)}, "slower with every number of clients"),
        ({"c1": (10, 9), "c4": (20, 21)}, "without one break-even"),
        ({"c1": (10, 9), "c4": (20, 21)}, "0.90x with 1, 1.05x with 4"),
        ({}, "not known"),
    ],
)
def test_the_break_even_is_between_the_loads_around_it(rates, words) -> None:
    assert words in break_even(points(**rates))


def test_acceptance_by_depth_by_hand() -> None:
    """Steps that accepted 0, 1, 1 and 3 draft tokens."""
    depths = by_depth([1, 2, 2, 4])
    assert [d.joint for d in depths] == [0.75, 0.25, 0.25, 0.0]
    assert [d.conditional for d in depths] == pytest.approx([0.75, 1 / 3, 1.0, 0.0])
    assert by_depth([]) == []


def test_lengths_of_prompts_fall_into_ranges() -> None:
    assert [bucket(n).strip() for n in (1, 32, 33, 9999)] == [
        "1 to 32 tokens", "1 to 32 tokens", "33 to 128 tokens", "more than 2048 tokens",
    ]  # fmt: skip


def test_repetition_is_the_share_of_parts_that_occurred_before() -> None:
    assert repetition(range(20)) == 0 and repetition((1, 2)) == 0
    assert repetition([1, 2, 3, 4] * 4) == pytest.approx(9 / 13)
