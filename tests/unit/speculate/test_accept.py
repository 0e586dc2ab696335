"""Acceptance, proven by exact enumeration and caught out by planted wrong rules."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from specpipe.core.contracts import ROOT, Draft, Floats, Verdict, chain
from specpipe.speculate import accept
from tests.helpers.distributions import verdicts


def exact_distribution(p: Callable[[accept.Path], Floats], draft: Draft) -> dict[tuple, float]:
    """Return the exact distribution of what `accept.sample` emits for one draft."""
    distribution: dict[tuple, float] = {}
    for verdict, odds in verdicts(draft, p):
        emitted = (*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token)
        distribution[emitted] = distribution.get(emitted, 0.0) + odds
    return distribution


def first_token(distribution: dict[tuple, float], size: int) -> np.ndarray:
    out = np.zeros(size)
    for emitted, odds in distribution.items():
        out[emitted[0]] += odds
    return out


def second_token_after(
    distribution: dict[tuple, float], first: int, after: Floats, size: int
) -> np.ndarray:
    """Return the joint distribution of (first, second); `after` draws a second that is missing."""
    out = np.zeros(size)
    for emitted, odds in distribution.items():
        if emitted[0] == first:
            out += odds * (after if len(emitted) == 1 else np.eye(size)[emitted[1]])
    return out


@pytest.fixture
def distributions(rng: np.random.Generator) -> dict[str, np.ndarray]:
    size = 4
    return {
        "p": rng.dirichlet(np.ones(size)),
        "after": rng.dirichlet(np.ones(size), size=size),  # one row a first token
        "q": rng.dirichlet(np.ones(size)),
        "q_after": rng.dirichlet(np.ones(size), size=size),
    }


def test_a_drafted_chain_leaves_the_joint_distribution_of_two_tokens_exactly_unchanged(
    distributions,
) -> None:
    size = 4
    first = np.zeros(size)
    joint = np.zeros((size, size))
    for x, y in itertools.product(range(size), repeat=2):
        odds = distributions["q"][x] * distributions["q_after"][x][y]
        draft = chain([x, y], np.stack([distributions["q"], distributions["q_after"][x]]))

        def p(path, draft=draft):
            return (
                distributions["p"] if not path else distributions["after"][draft.tokens[path[-1]]]
            )

        distribution = exact_distribution(p, draft)
        first += odds * first_token(distribution, size)
        for token in range(size):
            joint[token] += odds * second_token_after(
                distribution, token, distributions["after"][token], size
            )
    np.testing.assert_allclose(first, distributions["p"], atol=1e-12)
    np.testing.assert_allclose(
        joint, distributions["p"][:, None] * distributions["after"], atol=1e-12
    )


def test_siblings_chosen_with_certainty_leave_the_distribution_exactly_unchanged(
    distributions,
) -> None:
    draft = Draft(np.array([2, 0, 3]), np.array([ROOT, ROOT, ROOT]))
    distribution = exact_distribution(
        lambda path: distributions["p"] if not path else distributions["after"][0], draft
    )
    np.testing.assert_allclose(first_token(distribution, 4), distributions["p"], atol=1e-12)


def test_siblings_drawn_without_replacement_leave_the_distribution_exactly_unchanged(
    distributions,
) -> None:
    size, total = 4, np.zeros(4)
    for x, y in itertools.permutations(range(size), 2):
        rest = distributions["q"].copy()
        rest[x] = 0
        rest /= rest.sum()
        odds = distributions["q"][x] * rest[y]
        draft = Draft(
            np.array([x, y]), np.array([ROOT, ROOT]), np.stack([distributions["q"], rest])
        )
        distribution = exact_distribution(
            lambda path: distributions["p"] if not path else distributions["after"][0], draft
        )
        total += odds * first_token(distribution, size)
    np.testing.assert_allclose(total, distributions["p"], atol=1e-12)


def test_siblings_drawn_with_replacement_leave_the_distribution_exactly_unchanged(
    distributions,
) -> None:
    size, total = 4, np.zeros(4)
    for tokens in itertools.product(range(size), repeat=3):
        draft = Draft(np.array(tokens), np.array([ROOT] * 3), np.stack([distributions["q"]] * 3))
        distribution = exact_distribution(
            lambda path: distributions["p"] if not path else distributions["after"][0], draft
        )
        total += np.prod(distributions["q"][list(tokens)]) * first_token(distribution, size)
    np.testing.assert_allclose(total, distributions["p"], atol=1e-12)


def test_a_drawn_tree_leaves_the_joint_distribution_of_two_tokens_exactly_unchanged(
    distributions,
) -> None:
    """Two nodes drawn under the root, and two under the first: x and y, then v and w after x."""
    size, joint = 4, np.zeros((4, 4))
    for x, y, v, w in itertools.product(range(size), repeat=4):
        q, below = distributions["q"], distributions["q_after"][x]
        draft = Draft(
            np.array([x, y, v, w]), np.array([ROOT, ROOT, 0, 0]), np.stack([q, q, below, below])
        )

        def p(path, draft=draft):
            if len(path) == 2:
                return distributions["p"]
            return distributions["after"][draft.tokens[path[-1]]] if path else distributions["p"]

        distribution = exact_distribution(p, draft)
        for token in range(size):
            odds = q[x] * q[y] * below[v] * below[w]
            joint[token] += odds * second_token_after(
                distribution, token, distributions["after"][token], size
            )
    np.testing.assert_allclose(
        joint, distributions["p"][:, None] * distributions["after"], atol=1e-12
    )


def test_a_tree_of_certain_guesses_leaves_the_joint_distribution_exactly_unchanged(
    distributions,
) -> None:
    draft = Draft(np.array([2, 0, 3, 1, 2]), np.array([ROOT, ROOT, 0, 0, 1]))

    def p(path):
        if len(path) == 2:
            return distributions["p"]
        return distributions["after"][draft.tokens[path[-1]]] if path else distributions["p"]

    distribution = exact_distribution(p, draft)
    joint = [second_token_after(distribution, t, distributions["after"][t], 4) for t in range(4)]
    np.testing.assert_allclose(
        joint, distributions["p"][:, None] * distributions["after"], atol=1e-12
    )


def test_sample_draws_from_the_distribution_that_the_enumeration_predicts(
    distributions, rng
) -> None:
    draft = chain([1, 2], np.stack([distributions["q"], distributions["q_after"][1]]))

    def p(path):
        return distributions["p"] if not path else distributions["after"][draft.tokens[path[-1]]]

    expected = exact_distribution(p, draft)
    counts: dict[tuple, int] = dict.fromkeys(expected, 0)
    draws = 20_000
    for _ in range(draws):
        verdict = accept.sample(draft, p, rng)
        counts[(*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token)] += 1
    for emitted, odds in expected.items():
        spread = 5 * np.sqrt(draws * odds * (1 - odds)) + 1e-9
        assert abs(counts[emitted] - draws * odds) <= spread, emitted


def test_an_identical_draft_is_always_accepted_with_a_bonus_token(distributions, rng) -> None:
    draft = chain([1, 2], np.stack([distributions["p"], distributions["p"]]))
    for _ in range(200):
        assert accept.sample(draft, lambda path: distributions["p"], rng).path == (0, 1)


def test_an_impossible_guess_is_never_accepted(rng) -> None:
    p = np.array([0.5, 0.5, 0.0])
    for _ in range(200):
        verdict = accept.sample(chain([2]), lambda path: p, rng)
        assert verdict.path == () and verdict.next_token != 2


def test_greedy_follows_the_target_down_the_tree() -> None:
    #   root -> 5 -> 7
    #        -> 6 -> 8 -> 9
    draft = Draft(np.array([5, 6, 7, 8, 9]), np.array([ROOT, ROOT, 0, 1, 3]))
    best = {(): 6, (1,): 8, (1, 3): 4}
    assert accept.greedy(draft, lambda path: best[path]) == Verdict((1, 3), 4)


def test_greedy_with_an_empty_draft_emits_the_targets_token() -> None:
    assert accept.greedy(chain([]), lambda path: 3) == Verdict((), 3)


def test_scratch_nodes_are_never_accepted(rng) -> None:
    draft = Draft(np.array([5, 6]), np.array([ROOT, ROOT]), scratch=1)
    assert accept.greedy(draft, lambda path: 6) == Verdict((), 6)
    distribution = np.eye(8)[6]
    assert accept.sample(draft, lambda path: distribution, rng) == Verdict((), 6)


def test_draw_never_returns_a_token_of_probability_zero(rng) -> None:
    p = np.array([0.0, 0.3, 0.0, 0.7, 0.0])
    assert {accept.draw(p, rng) for _ in range(2000)} == {1, 3}


@pytest.mark.parametrize("size", [1, 255, 256, 257, 2000])
def test_a_draw_is_the_inverse_of_the_cumulated_distribution(size: int) -> None:
    """Against one sum over all tokens; the numbers come from the same generator."""
    distribution = np.random.default_rng(size).dirichlet(np.ones(size))
    distribution[::3] *= size == 1  # a third is impossible
    distribution /= distribution.sum()
    for seed in range(300):
        at = np.random.default_rng(seed).random()
        expected = int(np.searchsorted(np.cumsum(distribution), at, side="right"))
        assert accept.draw(distribution, np.random.default_rng(seed)) == min(expected, size - 1)


def test_a_number_close_to_one_draws_the_last_possible_token() -> None:
    class Last(np.random.Generator):
        def random(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
            return float(np.nextafter(1.0, 0.0))

    rng = Last(np.random.PCG64(0))
    for size in (3, 256, 700):
        for last in (1, size // 2, size - 2):
            distribution = np.zeros(size)
            distribution[: last + 1] = 1 / (last + 1)
            assert accept.draw(distribution, rng) == last


def test_a_residual_of_equal_distributions_is_the_distribution_itself() -> None:
    p = np.array([0.25, 0.75])
    np.testing.assert_array_equal(accept.residual(p, p.copy()), p)


# --- typical acceptance: lossy on purpose -------------------------------------------------------


def typical(
    distribution: list[float], tokens: list[int], parents: list[int], epsilon: float, delta: float
):
    draft = Draft(np.array(tokens), np.array(parents))
    rng = np.random.default_rng(0)
    return accept.typical(draft, lambda path: np.array(distribution), rng, epsilon, delta)


def test_typical_takes_the_deepest_path_of_likely_guesses() -> None:
    verdict = typical([0.6, 0.3, 0.1], [0, 1, 0, 2], [-1, -1, 1, 2], 0.2, 1.0)
    assert verdict.path == (1, 2)  # 2 has 0.1, which is too little; the path over 1 is deeper


def test_typical_prefers_the_likelier_of_equally_deep_paths() -> None:
    assert typical([0.6, 0.3, 0.1], [1, 0], [-1, -1], 0.05, 1.0).path == (1,)


def test_a_smaller_epsilon_accepts_more() -> None:
    distribution = [0.9, 0.06, 0.04]
    assert typical(distribution, [1], [-1], 0.09, 1.0).path == ()
    assert typical(distribution, [1], [-1], 0.05, 1.0).path == (0,)


def test_where_the_target_is_unsure_less_likely_guesses_stand() -> None:
    flat = [0.05] * 20
    assert typical(flat, [3], [-1], 0.09, 0.3).path == (0,)  # 0.3 * exp(-ln 20) = 0.015
    assert typical(flat, [3], [-1], 0.09, 1.1).path == ()


def test_typical_acceptance_is_lossy_and_the_enumeration_sees_it() -> None:
    distribution = np.array([0.5, 0.3, 0.2])
    draft = Draft(np.array([1]), np.array([-1]))
    rng = np.random.default_rng(1)
    first = [
        1 if accept.typical(draft, lambda path: distribution, rng, 0.09, 0.3).path else 0
        for _ in range(50)
    ]
    assert all(first)  # plain decoding emits token 1 three times in ten
