"""Tokens per second while all clients have something to do."""

import pytest

from specpipe.bench.throughput import Span, varied, while_busy


def test_the_measurement_ends_with_the_first_client_that_has_nothing_to_do() -> None:
    first, second, last = Span(11, 1.0, 2.0), Span(11, 1.0, 4.0), Span(11, 1.0, 6.0)
    tokens, seconds = while_busy([first, second, last], 2)
    # The third request is sent after 2 s. After 4 s the second client has nothing to do, and the
    # third answer has its first token and a fifth of the ten others.
    assert (tokens, seconds) == (pytest.approx(11 + 11 + 1 + 2), 4.0)


def test_one_client_is_measured_to_the_end() -> None:
    assert while_busy([Span(5, 0.5, 1.0), Span(7, 0.5, 2.0)], 1) == (12.0, 3.0)


def test_equal_answers_that_begin_together_are_measured_to_the_end() -> None:
    assert while_busy([Span(8, 0.5, 2.0)] * 8, 4) == (64.0, 4.0)


def test_an_answer_without_a_first_token_counts_nothing() -> None:
    assert while_busy([Span(4, 0.5, 1.0), Span(9, 1.5, 3.0)], 2) == (4.0, 1.0)
    assert while_busy([Span(4, 0.5, 1.0), Span(0, 0.0, 3.0)], 2) == (4.0, 1.0)


def test_fewer_requests_than_clients_are_that_many_clients() -> None:
    assert while_busy([Span(4, 0.5, 1.0)], 8) == (4.0, 1.0)
    assert while_busy([], 8) == (0.0, 0.0)


def test_lengths_vary_around_their_mean() -> None:
    assert varied(96, 5) == [96, 48, 144, 72, 120]
    assert sum(varied(96, 20)) == 20 * 96 and varied(1, 2) == [1, 1]
