"""Accuracies by hand: ranks, shares, and what is conditional on what."""

import numpy as np
import pytest
import torch

from specpipe.train.accuracy import NEVER, WIDTH, calibrate, label_ranks, measure

ALL = np.ones(6, bool)


def test_a_rank_counts_the_tokens_that_the_head_prefers_to_the_label() -> None:
    output = torch.eye(4)
    features = torch.tensor([[9.0, 5.0, 7.0, 1.0]] * 3)
    ranks = label_ranks(features, output, torch.tensor([0, 1, -1]))
    assert ranks.tolist() == [0, 2, NEVER]


def test_top_k_is_the_share_of_labels_among_the_first_k() -> None:
    (head,) = measure([np.array([0, 0, 1, 3, 9, NEVER])], [np.array([1, 1, 1, 1, 1, 0], bool)])
    assert head.positions == 5
    assert head.top == pytest.approx((0.4, 0.6, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 1.0))


def test_a_guess_counts_only_where_every_shallower_head_was_right() -> None:
    first = np.array([0, 0, 1, 12, 12, 12])  # 12: not among the first ten
    second = np.array([0, 1, 0, 0, 0, 0])
    third = np.array([5, 5, 11, 0, 0, 0])
    found = calibrate([first, second, third], [ALL, ALL, ALL])
    assert found.samples == (6, 3, 3) and found.positions == (6, 6, 6)
    assert found.conditional[0][:2] == pytest.approx((2 / 6, 1 / 6))
    assert found.conditional[1][:2] == pytest.approx((2 / 3, 1 / 3))
    assert found.conditional[2][5] == pytest.approx(2 / 3)
    assert found.accuracy[1][0] == pytest.approx(5 / 6), "the accuracy has no condition"
    assert {len(row) for row in found.conditional} == {WIDTH}


def test_positions_without_a_label_do_not_count() -> None:
    has_label = np.array([1, 1, 0, 0, 0, 0], bool)
    place = np.where(has_label, 0, NEVER)
    found = calibrate([np.zeros(6, np.int64), place], [ALL, has_label])
    assert found.samples == (6, 2) and found.conditional[1][0] == 1.0
