"""Drafts with a longer or shorter table than the target: nothing impossible is ever proposed."""

import numpy as np
import pytest

from specpipe.contracts import EMPTY, Sampling, Verdict, chain
from specpipe.speculate.decode import Limits
from specpipe.speculate.vocabulary import InVocabulary, in_vocabulary
from tests.contract.laws import enumerate_proposer, exact_law
from tests.contract.test_laws import SAMPLED
from tests.contract.worlds import PROMPT, World
from tests.unit.speculate.scripted import ScriptedRunner, random_law

WITH_DRAFT = ("draft_model", "draft_model, adaptive", "draft_model, confidence", "hybrid")


@pytest.mark.parametrize("options", WITH_DRAFT)
@pytest.mark.parametrize("rows", [3, 4, 8])
def test_greedy_output_equals_plain_decoding(options: str, rows: int) -> None:
    world = World(vocab_size=5)
    for sampling in (Sampling(), Sampling(repetition_penalty=1.7), Sampling(bad_words=((0,),))):
        proposer = world.proposer_of_size(options, rows)
        assert world.generate(proposer, sampling, Limits(40)) == world.plain(sampling, Limits(40))


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", SAMPLED)
def test_the_joint_law_of_three_tokens_is_exactly_the_targets(rows: int, name: str) -> None:
    world = World(vocab_size=3)
    got = enumerate_proposer(world, world.proposer_of_size("draft_model", rows, 2), SAMPLED[name])
    np.testing.assert_allclose(got, exact_law(world, SAMPLED[name]), atol=1e-12)


def test_a_draft_that_wants_only_what_the_target_lacks_proposes_something_else() -> None:
    def padding(context: object) -> np.ndarray:
        return np.array([0.01, 0.02, 0.97])

    runner = in_vocabulary(ScriptedRunner(padding, 3), 2)
    runner.start([0])
    logits = runner.score(EMPTY).logits
    assert logits.shape == (1, 2) and logits.argmax() == 1


def test_a_committed_token_that_the_draft_lacks_is_read_as_another() -> None:
    inner = ScriptedRunner(random_law(3, seed=1), 3)
    runner = InVocabulary(inner, 5)
    runner.start([1, 4])
    runner.commit(EMPTY, Verdict((), 3))
    assert inner.sequence == [1, 0, 0]
    scores = runner.score(chain([4, 2]))
    assert scores.logits.shape == (3, 5) and scores.logits[:, 3:].max() < -1e29


def test_equal_tables_need_no_wrapping() -> None:
    runner = ScriptedRunner(random_law(3, seed=1), 3)
    assert in_vocabulary(runner, 3) is runner


def test_the_prompt_is_read_through_the_drafts_eyes() -> None:
    inner = ScriptedRunner(random_law(2, seed=1), 2)
    InVocabulary(inner, 3).follow(PROMPT)
    assert set(inner.sequence) == {0, 1}
