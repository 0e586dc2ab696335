"""Mutation tests: planted mistakes change the checked property. The quick ones run here.

`scripts/mutants` plants all of them and runs the whole tests.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.speculate import accept
from specpipe.speculate.decode import Limits
from tests.helpers.distributions import enumerate_distribution, exact_distribution
from tests.helpers.mutants import MUTANTS, plant
from tests.helpers.worlds import OPTIONS, World

WORLD = World(vocab_size=3)
# Request options that reveal every mutant of the distribution.
SAMPLED = [
    Sampling(top_k=0),
    Sampling(top_k=0, temperature=0.6),
    Sampling(top_k=0, frequency_penalty=0.8),
]
OF_THE_DISTRIBUTION = [
    name for name, mutant in MUTANTS.items() if "exactly_the_targets" in mutant.tests
]
OF_GREEDY = ["greedy token from the wrong row", "first guess always accepted"]


def shifts() -> Iterator[float]:
    """Yield the total variation of every proposer's joint distribution from the target's."""
    for options in OPTIONS:
        for sampling in SAMPLED:
            got = enumerate_distribution(WORLD, options, sampling)
            yield float(np.abs(got - exact_distribution(WORLD, sampling)).sum() / 2)


def some_greedy_answer_differs() -> bool:
    want = WORLD.plain(Sampling(), Limits(30))
    answers = [
        WORLD.generate(WORLD.case(options, draft_name), Sampling(), Limits(30))
        for options in OPTIONS
        for draft_name in WORLD.drafts
    ]
    return any(answer != want for answer in answers)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_replaces_what_exists_and_names_tests_that_exist(name: str) -> None:
    replaced: list[str] = []
    plant(name, lambda owner, attribute, value: replaced.append(attribute))
    assert replaced
    places = [word.split("::")[0] for word in MUTANTS[name].tests if word.startswith("tests/")]
    assert places and all(Path(place).exists() for place in places)


@pytest.mark.slow
def test_without_a_mutant_nothing_is_off() -> None:
    assert max(shifts()) < 1e-12 and not some_greedy_answer_differs()


@pytest.mark.parametrize("name", OF_THE_DISTRIBUTION)
def test_a_mutant_of_the_distribution_moves_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(name, monkeypatch.setattr)
    assert any(shift > 1e-3 for shift in shifts())


@pytest.mark.parametrize("name", OF_GREEDY)
def test_a_mutant_of_greedy_acceptance_changes_an_answer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(name, monkeypatch.setattr)
    assert some_greedy_answer_differs()


def test_comparing_a_drawn_guess_with_a_drawn_token_is_lossless_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a mutant: comparison is right for any draft token, even one of unknown distribution."""
    honest = accept.sample
    monkeypatch.setattr(
        accept,
        "sample",
        lambda draft, distribution, rng: honest(
            type(draft)(draft.tokens, draft.parents), distribution, rng
        ),
    )
    got = enumerate_distribution(WORLD, "draft_model", Sampling(top_k=0))
    np.testing.assert_allclose(got, exact_distribution(WORLD, Sampling(top_k=0)), atol=1e-12)
