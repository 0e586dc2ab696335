"""The loss: exact over the whole vocabulary, unbiased over a part of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from specpipe.train.loss import (
    Lesson,
    Vocabulary,
    by_frequency,
    cross_entropy,
    every_token,
    frequent_tokens,
    weighted_sum,
)

V, D, N = 60, 8, 12


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features [N, D], output [V, D] and labels [N, 1]."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(N, D, generator=generator)
    output = torch.randn(V, D, generator=generator) * 0.3
    labels = torch.randint(0, V, (N, 1), generator=generator)
    labels[3] = -1
    return features, output, labels


def loss_of(case, frequent: list[int], samples: int, seed: int = 0) -> torch.Tensor:
    features, output, labels = case
    vocabulary = Vocabulary(V, np.array(frequent, np.int64), samples)
    chosen = vocabulary.candidates(labels, np.random.default_rng(seed))
    return cross_entropy(features, output, chosen, 0)


def exact(case) -> float:
    features, output, labels = case
    kept = labels[:, 0] >= 0
    logits = (features @ output.T)[kept].log_softmax(-1)
    return -float(logits.gather(1, labels[kept]).mean())


def test_without_a_reduction_the_loss_is_exact(case) -> None:
    assert float(loss_of(case, [], 10)) == pytest.approx(exact(case), rel=1e-5)


def test_when_every_other_token_is_drawn_the_loss_is_exact(case) -> None:
    assert float(loss_of(case, [1, 2, 3], V)) == pytest.approx(exact(case), rel=1e-5)


def test_a_sample_is_right_on_average_and_without_its_correction_it_is_not(case) -> None:
    features, output, labels = case
    right, wrong = [], []
    for seed in range(300):
        chosen = Vocabulary(V, np.arange(30), 8).candidates(labels, np.random.default_rng(seed))
        uncorrected = replace(chosen, bias=None)
        right.append(float(cross_entropy(features, output, chosen, 0)))
        wrong.append(float(cross_entropy(features, output, uncorrected, 0)))
    assert np.mean(right) == pytest.approx(exact(case), rel=0.01)
    assert np.mean(wrong) < 0.97 * exact(case)


def test_every_label_takes_part_and_no_token_twice(case) -> None:
    labels = case[2]
    chosen = Vocabulary(V, np.array([5, 7]), 9).candidates(labels, np.random.default_rng(1))
    assert chosen.tokens is not None and len(set(chosen.tokens.tolist())) == len(chosen.tokens)
    kept = labels[:, 0] >= 0
    assert chosen.tokens[chosen.labels[kept]].tolist() == labels[kept].tolist()
    assert chosen.labels[~kept].tolist() == [[-1]]


def test_a_head_without_labels_costs_nothing(case) -> None:
    features, output, _ = case
    nothing = torch.full((N, 1), -1)
    chosen = Vocabulary(V, np.array([], np.int64), 4).candidates(nothing, np.random.default_rng(0))
    assert float(cross_entropy(features, output, chosen, 0)) == 0


def test_the_most_frequent_labels_are_found() -> None:
    labels = np.array([[4, 4], [4, 9], [-1, 9], [2, -1]])
    assert frequent_tokens(labels, 2).tolist() == [4, 9]
    assert frequent_tokens(labels, 99).tolist() == [2, 4, 9]
    assert frequent_tokens(labels, 0).tolist() == []


def test_the_tokens_of_a_vocabulary_are_ranked_by_how_often_they_are_labels() -> None:
    labels = np.array([[4, 4], [4, 5], [-1, 5], [2, -1]])
    assert by_frequency(labels, 7).tolist() == [4, 5, 2, 0, 1, 3, 6]


def test_deeper_heads_weigh_less() -> None:
    losses = [torch.tensor(1.0), torch.tensor(10.0), torch.tensor(100.0)]
    assert float(weighted_sum(losses, 0.5)) == pytest.approx(1 + 5 + 25)


def test_a_lesson_is_learned_as_a_distribution_where_it_is_known(case) -> None:
    features, output, labels = case
    taught = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    known = torch.arange(N) % 2 == 0
    lesson = Lesson(taught, output, known)
    chosen = every_token(labels)
    wanted = (taught @ output.T).softmax(-1)
    said = (features @ output.T).log_softmax(-1)
    kept = labels[:, 0] >= 0
    soft = -(wanted * said).sum(-1)[kept & known]
    hard = -said.gather(1, labels.clamp(min=0))[kept & ~known, 0]
    expected = torch.cat([soft, hard]).mean()
    torch.testing.assert_close(cross_entropy(features, output, chosen, 0, lesson), expected)


def test_who_says_what_the_lesson_says_has_nothing_to_learn(case) -> None:
    features, output, labels = case
    features = features.clone().requires_grad_()
    lesson = Lesson(features.detach(), output, torch.ones(N, dtype=torch.bool))
    for frequent, samples in (([], 0), ([1, 2, 3, 5, 8], 20)):
        vocabulary = Vocabulary(V, np.array(frequent, np.int64), samples)
        chosen = vocabulary.candidates(labels, np.random.default_rng(0))
        (slope,) = torch.autograd.grad(cross_entropy(features, output, chosen, 0, lesson), features)
        assert float(slope.abs().max()) < 1e-6
