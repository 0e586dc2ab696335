"""Constrained output equals plain decoding under the same grammar, for every proposer in the table.

What a grammar permits is judged by brute force (`helpers/languages.py`), not by llguidance.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from specpipe.core.contracts import Asking, Draft, Sampling, T
from specpipe.speculate import decode
from specpipe.speculate.constrained import Constraint, permitted_part
from specpipe.speculate.decode import Limits
from tests.helpers.distributions import (
    enumerate_case,
    enumerate_distribution,
    exact_distribution,
)
from tests.helpers.languages import TEXTS, Language
from tests.helpers.mutants import MUTANTS, plant
from tests.helpers.worlds import OPTIONS, World, some_allowance, some_nodes

PATTERNS = ("(ab|b){1,3}a?", "a(ab){0,3}|bb", "(aa|b(ab?)?){2}")
SMALL = {pattern: World(4, Language(pattern)) for pattern in PATTERNS}
WORLD = World(7, Language("(ab|ba?c|cc?a){1,2}(ca?b?)?", TEXTS))
ENDLESS = World(7, Language("(ab|ba?c|cc?a)*(ca?b?)?", TEXTS))  # no judge knows its words
END = (6,)

GREEDY = [
    Sampling(end_ids=END),
    Sampling(end_ids=END, repetition_penalty=1.7),
    Sampling(end_ids=END, frequency_penalty=0.4, min_tokens=3),
    Sampling(end_ids=END, bad_words=((2,),)),
]
SAMPLED = [
    Sampling(top_k=0, end_ids=END),
    Sampling(top_k=3, temperature=0.8, end_ids=END),
    Sampling(top_k=0, top_p=0.9, frequency_penalty=0.4, end_ids=END),
]
EXACT = [
    Sampling(top_k=0, end_ids=(3,)),
    Sampling(top_k=2, temperature=0.6, end_ids=(3,)),
    Sampling(top_k=0, top_p=0.8, end_ids=(3,), frequency_penalty=0.4),
]
CHOSEN = [name for name, make in OPTIONS.items() if getattr(make(1), "draft", None) is None]


WORLDS = {"words": WORLD, "endless": ENDLESS}


@functools.cache
def plain(world: str, sampling: Sampling, most: int) -> list[int]:
    return WORLDS[world].plain(sampling, Limits(most))


every_option = pytest.mark.parametrize("options", OPTIONS)


@pytest.mark.parametrize("sampling", [*GREEDY, *SAMPLED])
def test_plain_decoding_keeps_to_the_words_of_the_judge(sampling: Sampling) -> None:
    assert WORLD.language is not None
    for seed in range(4):
        output = plain("words", replace(sampling, seed=seed), 12)
        for n, token in enumerate(output):
            assert WORLD.language.permitted(output[:n])[token], (output, n)
            assert not WORLD.language.is_complete(output[:n])
        assert output[-1] in END or WORLD.language.is_complete(output) or len(output) == 12


@every_option
def test_greedy_output_equals_plain_decoding(options: str) -> None:
    worlds = itertools.cycle(
        [("words", 4, 12), ("endless", 3, 30), ("endless", 7, 11), ("words", 2, 2)]
    )
    for draft_name, sampling in itertools.product(WORLD.drafts, GREEDY):
        name, depth, most = next(worlds)
        world = WORLDS[name]
        got = world.generate(world.case(options, draft_name, depth), sampling, Limits(most))
        assert got == plain(name, sampling, most), (draft_name, sampling, depth, most)


@pytest.mark.parametrize("options", CHOSEN)
def test_with_a_seed_sampled_output_equals_plain_decoding(options: str) -> None:
    for seed, (draft_name, sampling) in enumerate(itertools.product(WORLD.drafts, SAMPLED)):
        seeded = replace(sampling, seed=seed)
        got = ENDLESS.generate(
            ENDLESS.case(options, draft_name, 4),
            seeded,
            Limits(20),
            allow=some_allowance(seed) if seed % 2 else lambda limit: limit,
            cut=some_nodes(seed),
        )
        assert got == plain("endless", seeded, 20), (draft_name, seed)


@every_option
def test_the_joint_distribution_of_three_tokens_is_exactly_the_targets(options: str) -> None:
    for pattern, draft_name, sampling in zip(PATTERNS, WORLD.drafts, EXACT, strict=True):
        world = SMALL[pattern]
        expected = exact_distribution(world, sampling)
        got = enumerate_distribution(world, options, sampling, draft_name)
        np.testing.assert_allclose(got, expected, atol=1e-12, err_msg=draft_name)


@pytest.mark.parametrize("options", ["draft_model", "medusa"])
def test_it_is_exact_whatever_is_allowed_and_scored(options: str) -> None:
    world = SMALL[PATTERNS[0]]
    for seed, draft_name in enumerate(("identical", "random")):
        got = enumerate_case(
            world,
            world.case(options, draft_name, 2),
            EXACT[0],
            allow=some_allowance(seed) if seed % 2 else lambda limit: limit,
            cut=some_nodes(seed),
        )
        np.testing.assert_allclose(got, exact_distribution(world, EXACT[0]), atol=1e-12)


def test_a_draft_model_drafts_what_the_grammar_permits() -> None:
    """With the target's own distribution, every draft token is accepted, as without a grammar."""
    for sampling in (Sampling(), Sampling(top_k=0, seed=2)):
        case = ENDLESS.case("draft_model", "identical", 3)
        steps = ENDLESS.steps(case, sampling, Limits(30))
        assert len(steps) > 3 and all(step.accepted == step.drafted for step in steps[:-1])


def test_forbidden_nodes_of_a_chosen_draft_are_not_scored() -> None:
    drafted = []
    for world in (World(7), ENDLESS):
        case = world.case("medusa, dynamic", "random", 6)
        drafted.append([s.drafted for s in world.steps(case, Sampling(), Limits(20))])
    assert 0 < np.mean(drafted[1]) < np.mean(drafted[0])


def draws_what_it_likes(asking: Asking[T], constraint: Constraint, length: int) -> Asking[T]:
    return asking


def cut_by_what_was_drawn(draft: Draft, constraint: Constraint) -> Draft:
    kept = permitted_part(replace(draft, probs=None), constraint)
    return replace(kept, probs=None if draft.probs is None else draft.probs[: len(kept)])


@pytest.mark.slow
def test_a_draft_against_the_grammar_may_be_drawn_but_not_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "guided", draws_what_it_likes)
    assert not some_distribution_differs(PATTERNS[1:])
    monkeypatch.setattr(decode, "permitted_part", cut_by_what_was_drawn)
    assert some_distribution_differs(PATTERNS[1:])


# --- planted mistakes ---------------------------------------------------------------------------

OF_GRAMMARS = [name for name, mutant in MUTANTS.items() if "test_grammars" in mutant.tests[0]]


def some_greedy_answer_differs() -> bool:
    """Tell whether an answer is another one, or none."""
    for options, sampling in itertools.product(("none", "draft_model", "medusa"), GREEDY):
        case = ENDLESS.case(options, "identical", 4)
        try:
            got = ENDLESS.generate(case, sampling, Limits(30))
        except Exception:
            return True
        if got != plain("endless", sampling, 30):
            return True
    return False


def some_distribution_differs(patterns: Sequence[str] = PATTERNS) -> bool:
    for pattern, sampling in zip(patterns, EXACT, strict=False):
        world = SMALL[pattern]
        try:
            got = enumerate_distribution(world, "draft_model", sampling, "random")
        except Exception:
            return True
        if np.abs(got - exact_distribution(world, sampling)).sum() > 1e-3:
            return True
    return False


@pytest.mark.parametrize("name", OF_GRAMMARS)
def test_a_mutant_of_the_grammar_changes_answers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sampling in GREEDY:
        plain("endless", sampling, 30)  # the answers without the mutant
    plant(name, monkeypatch.setattr)
    assert some_greedy_answer_differs() or some_distribution_differs()


def test_without_a_mutant_nothing_differs() -> None:
    assert not some_greedy_answer_differs() and not some_distribution_differs()
