"""No proposer changes the target's distribution: by enumeration to 1e-12, and by 20,000 draws."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from specpipe.core.contracts import Ints, Sampling, Score
from specpipe.runtime.assembly import PROPOSERS
from specpipe.runtime.budget import Budget
from specpipe.runtime.cost import StepCost
from tests.helpers.distributions import (
    Dice,
    enumerate_case,
    enumerate_distribution,
    exact_distribution,
    excess,
    frequencies,
    outcomes,
)
from tests.helpers.worlds import OPTIONS, SAMPLED, World, some_allowance, some_nodes

WORLD = World(vocab_size=3)
DRAWS = 20_000
# Bonferroni: one false alarm in a thousand runs, over all methods together. Two more, because
# chi-square's tail is longer than that of the normal distribution.
BOUND = NormalDist().inv_cdf(1 - 1e-3 / len(PROPOSERS)) + 2

every_option = pytest.mark.parametrize("options", OPTIONS)


@every_option
@pytest.mark.parametrize("name", SAMPLED)
def test_the_joint_distribution_of_three_tokens_is_exactly_the_targets(
    options: str, name: str
) -> None:
    expected = exact_distribution(WORLD, SAMPLED[name])
    for draft_name in WORLD.drafts:
        got = enumerate_distribution(WORLD, options, SAMPLED[name], draft_name)
        np.testing.assert_allclose(got, expected, atol=1e-12, err_msg=draft_name)


@every_option
@pytest.mark.parametrize("seed", range(2))
def test_the_distribution_is_exactly_the_targets_whatever_is_allowed_and_scored(
    options: str, seed: int
) -> None:
    sampling = SAMPLED["penalties"]
    for draft_name in ("identical", "random"):
        got = enumerate_case(
            WORLD,
            WORLD.case(options, draft_name, 3),
            sampling,
            allow=some_allowance(seed) if seed % 2 else lambda limit: limit,
            cut=some_nodes(seed),
        )
        np.testing.assert_allclose(
            got, exact_distribution(WORLD, sampling), atol=1e-12, err_msg=draft_name
        )


# Here two draft tokens pay, and one does not.
STEPS = StepCost(np.array([1.0, 2, 3, 4]), np.array([1.0, 1.65, 1.66, 1.67]))


def what_pays(ask: Score) -> Ints | None:
    """Return the nodes that a budget scores after any committed tokens."""
    if not len(ask.draft):
        return None
    budget = Budget(STEPS)
    forecast = replace(budget.forecast(adaptive=True, max_concurrency=None), allowed=3)
    (nodes,) = budget.choose([ask.draft], [forecast], streams=1, roots=1, room=8)
    return nodes


@every_option
def test_the_budget_does_not_change_the_distribution(options: str) -> None:
    """Whether the first token is scored must not depend on how long the draft became after it."""
    for draft_name in ("identical", "random"):
        case = WORLD.case(options, draft_name, 3)
        got = enumerate_case(WORLD, case, SAMPLED["plain"], cut=what_pays)
        np.testing.assert_allclose(
            got, exact_distribution(WORLD, SAMPLED["plain"]), atol=1e-12, err_msg=draft_name
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["draft_model", *(pytest.param(m, marks=pytest.mark.exhaustive) for m in ("none", "hybrid"))],
)
def test_twenty_thousand_answers_are_distributed_as_the_target(method: str) -> None:
    """Unlike enumeration, this test detects generators that depend on each other.

    The other methods draw nothing: their answers are those of `none`, seed by seed
    (test_proposers.py).
    """
    counts = frequencies(WORLD, method, SAMPLED["plain"], draws=DRAWS)
    assert excess(exact_distribution(WORLD, SAMPLED["plain"]), counts) < BOUND


def test_dice_enumerate_every_outcome_once() -> None:
    def program(dice: Dice) -> tuple[int, bool]:
        first = dice.choose(np.array([0.5, 0.0, 0.5]))
        return first, first == 2 and dice.random() * 0.5 < 0.125

    assert dict(outcomes(program)) == {(0, False): 0.5, (2, False): 0.375, (2, True): 0.125}


def test_draws_from_another_distribution_are_far_off() -> None:
    expected = exact_distribution(WORLD, SAMPLED["plain"])
    other = exact_distribution(WORLD, Sampling(top_k=0, temperature=1.05))
    counts = np.random.default_rng(1).multinomial(DRAWS, other.ravel()).reshape(other.shape)
    assert excess(expected, counts) > BOUND
