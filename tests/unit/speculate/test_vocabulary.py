"""Drafts with a longer or shorter table than the target: nothing impossible is ever proposed."""

import numpy as np
import pytest

from specpipe.core.contracts import EMPTY, Sampling, chain
from specpipe.speculate.decode import Limits
from specpipe.speculate.vocabulary import InVocabulary, in_vocabulary
from tests.helpers.distributions import enumerate_case, exact_distribution
from tests.helpers.scripted_engine import ScriptedEngine, ServedModel
from tests.helpers.scripted_model import random_distribution
from tests.helpers.worlds import PROMPT, SAMPLED, World

WITH_DRAFT = ("draft_model", "draft_model, fixed", "draft_model, confidence", "hybrid")


@pytest.mark.parametrize("options", WITH_DRAFT)
@pytest.mark.parametrize("rows", [3, 4, 8])
def test_greedy_output_equals_plain_decoding(options: str, rows: int) -> None:
    world = World(vocab_size=5)
    for sampling in (Sampling(), Sampling(repetition_penalty=1.7), Sampling(bad_words=((0,),))):
        case = world.case_of_size(options, rows)
        assert world.generate(case, sampling, Limits(40)) == world.plain(sampling, Limits(40))


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", SAMPLED)
def test_the_joint_distribution_of_three_tokens_is_exactly_the_targets(
    rows: int, name: str
) -> None:
    world = World(vocab_size=3)
    got = enumerate_case(world, world.case_of_size("draft_model", rows, 2), SAMPLED[name])
    np.testing.assert_allclose(got, exact_distribution(world, SAMPLED[name]), atol=1e-12)


def test_a_draft_that_wants_only_what_the_target_lacks_proposes_something_else() -> None:
    def padding(context: object) -> np.ndarray:
        return np.array([0.01, 0.02, 0.97])

    engine = in_vocabulary(ScriptedEngine(padding, 3), 2)
    logits = ServedModel(engine).score([0], EMPTY).logits
    assert logits.shape == (1, 2) and logits.argmax() == 1


def test_a_committed_token_that_the_draft_lacks_is_read_as_another() -> None:
    inner = ScriptedEngine(random_distribution(3, seed=1), 3)
    model = ServedModel(InVocabulary(inner, 5))
    model.score([1, 4], EMPTY)
    scores = model.score([1, 4, 3], chain([4, 2]))
    assert inner.steps[0][0].tokens.tolist() == [1, 0]
    assert inner.steps[1][0].tokens.tolist() == [0, 0, 2]
    assert scores.logits.shape == (3, 5) and scores.logits[:, 3:].max() < -1e29


def test_equal_tables_need_no_wrapping() -> None:
    engine = ScriptedEngine(random_distribution(3, seed=1), 3)
    assert in_vocabulary(engine, 3) is engine


def test_the_prompt_is_read_through_the_drafts_eyes() -> None:
    inner = ScriptedEngine(random_distribution(2, seed=1), 2)
    engine = InVocabulary(inner, 3)
    model = ServedModel(engine)
    for tokens in (PROMPT, [*PROMPT, 0]):
        model.score(tokens, EMPTY)
    model.lane.release()
    assert set(inner.steps[0][0].tokens.tolist()) == {0, 1}
    assert len(engine.open([*PROMPT, 0]).tokens) == len(PROMPT)  # found again


def test_predictions_of_what_the_target_lacks_have_no_chance() -> None:
    engine = InVocabulary(ScriptedEngine(random_distribution(5, seed=1), 5), 3)
    (guesses,) = engine.guess(np.array([[1, 2]], np.float32))
    states = np.zeros((2, 2), np.float32)
    extended = engine.extend(np.ones((2, 2), np.float32), states, np.array([1, 4]))
    for found in (guesses, extended):
        assert found.tokens.max() < 3
        assert np.count_nonzero(found.probs, axis=1).tolist() == [3] * len(found.tokens)
