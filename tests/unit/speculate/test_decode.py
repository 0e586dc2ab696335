"""The loop: where it ends, what it counts, and that it equals plain decoding."""

from collections.abc import Sequence

import numpy as np
import pytest

from specpipe.core.contracts import Draft, Floats, Ints, Sampling, Score, chain
from specpipe.speculate.decode import (
    CONTEXT_BLOCK,
    ContextLogits,
    Limits,
    Step,
    decode,
    read_context,
)
from specpipe.speculate.none import NoProposer
from tests.helpers.scripted_model import (
    FixedProposer,
    ScriptedModel,
    always,
    events,
    random_distribution,
)
from tests.helpers.scripted_model import run as run_with

VOCAB = 8


def counting(context: Sequence[int]) -> Floats:
    """The next token is the last one plus one, always."""
    return np.eye(VOCAB)[(context[-1] + 1) % VOCAB]


def oracle(tokens: list[int], limit: int):
    return chain([(tokens[-1] + 1 + i) % VOCAB for i in range(limit)])


def run(
    proposer, limits: Limits, sampling: Sampling | None = None, distribution=counting, **options
) -> list[Step]:
    decoding = decode(proposer, [0], sampling or Sampling(), limits, log_probs=True)
    return run_with(decoding, {"target": ScriptedModel(distribution)}, **options)


def tokens(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def test_plain_decoding_emits_one_token_a_step() -> None:
    steps = run(NoProposer(), Limits(max_tokens=5))
    assert tokens(steps) == [1, 2, 3, 4, 5]
    assert [len(s.tokens) for s in steps] == [1] * 5
    assert [s.finish for s in steps] == [None] * 4 + ["length"]


def test_a_perfect_draft_emits_all_of_it_and_a_bonus_token() -> None:
    steps = run(FixedProposer(oracle, 3), Limits(max_tokens=8))
    assert tokens(steps) == [1, 2, 3, 4, 5, 6, 7, 0]
    assert [(s.drafted, s.accepted, len(s.tokens)) for s in steps] == [(3, 3, 4), (3, 3, 4)]


def test_a_wrong_draft_costs_nothing_but_the_guesses() -> None:
    steps = run(FixedProposer(always(7), 3), Limits(max_tokens=4))
    assert tokens(steps) == [1, 2, 3, 4]
    assert sum(s.accepted for s in steps) == 0


def test_max_tokens_is_never_exceeded_whatever_is_drafted() -> None:
    for most in range(1, 7):
        steps = run(FixedProposer(oracle, 4), Limits(max_tokens=most))
        assert tokens(steps) == [1, 2, 3, 4, 5, 6][:most]
        assert steps[-1].finish == "length"


def test_a_proposer_that_ignores_the_limit_is_cut() -> None:
    proposer = FixedProposer(lambda seen, limit: oracle(seen, 5), 5)
    steps = run(proposer, Limits(max_tokens=3))
    assert tokens(steps) == [1, 2, 3] and steps[-1].accepted == 3


def test_any_end_token_inside_an_accepted_block_ends_the_answer_with_reason_end_id() -> None:
    steps = run(FixedProposer(oracle, 5), Limits(max_tokens=7), Sampling(end_ids=(99, 3)))
    assert [s.finish for s in steps][-1] == "end_id" and steps[-1].tokens[-1] == 3


def test_end_id_inside_an_accepted_block_ends_the_answer_with_it() -> None:
    steps = run(FixedProposer(oracle, 5), Limits(max_tokens=7), Sampling(end_ids=(3,)))
    assert tokens(steps) == [1, 2, 3]
    assert steps[-1].finish == "end_id" and steps[-1].accepted == 3


def test_a_stop_word_ends_the_answer_with_it_even_across_steps() -> None:
    limits = Limits(max_tokens=7, stop_words=((4, 5),))
    for proposer in (NoProposer(), FixedProposer(oracle, 2), FixedProposer(oracle, 6)):
        steps = run(proposer, limits)
        assert tokens(steps) == [1, 2, 3, 4, 5]
        assert steps[-1].finish == "stop_words"


def test_a_stop_word_in_the_prompt_does_not_count() -> None:
    assert tokens(run(NoProposer(), Limits(2, stop_words=((0, 1),)))) == [1, 2]


def test_log_probabilities_belong_to_the_emitted_tokens() -> None:
    distribution = random_distribution(VOCAB, seed=3)
    steps = run(FixedProposer(always(1), 2), Limits(6), distribution=distribution)
    seen = [0]
    for step in steps:
        for token, score in zip(step.tokens, step.log_probs, strict=True):
            assert score == pytest.approx(np.log(distribution(seen)[token]), abs=1e-5)
            seen.append(token)


def test_a_seed_makes_a_sampled_answer_repeatable() -> None:
    def answer(seed: int) -> list[int]:
        sampling = Sampling(top_k=0, seed=seed)
        return tokens(run(NoProposer(), Limits(20), sampling, random_distribution(VOCAB, seed=5)))

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_log_probabilities_are_computed_on_demand_only() -> None:
    decoding = decode(NoProposer(), [0], Sampling(), Limits(3))
    steps = run_with(decoding, {"target": ScriptedModel(counting)})
    assert [step.log_probs for step in steps] == [()] * 3


def test_a_draft_is_as_deep_as_the_driver_allows() -> None:
    asked: list[int] = []

    def allow(limit: int) -> int:
        asked.append(limit)
        return [2, 0, 9][len(asked) - 1]

    steps = run(FixedProposer(oracle, 5), Limits(max_tokens=8), allow=allow)
    assert tokens(steps) == [1, 2, 3, 4, 5, 6, 7, 0]
    assert [(s.drafted, s.accepted) for s in steps] == [(2, 2), (0, 0), (5, 4)]
    assert asked == [5, 4, 3]  # tokens left without the target's own, at most the draft's nodes


def test_nodes_that_were_not_scored_count_as_not_drafted() -> None:
    def cut(ask: Score) -> Ints:
        return np.arange(min(1, len(ask.draft)))

    steps = run(FixedProposer(oracle, 3), Limits(max_tokens=6), cut=cut)
    assert tokens(steps) == [1, 2, 3, 4, 5, 6]
    assert [(s.drafted, s.accepted) for s in steps] == [(1, 1)] * 3


def test_the_proposer_observes_the_nodes_that_were_scored() -> None:
    seen: list[list[int]] = []

    class Observer(FixedProposer):
        def observe(self, draft, scores, verdict) -> None:
            seen.append(draft.tokens.tolist())
            assert len(scores.logits) == 1 + len(draft)
            super().observe(draft, scores, verdict)

    tree = Draft(np.array([7, 1, 6, 2]), np.array([-1, -1, 0, 1]))
    run(
        Observer(lambda tokens, limit: tree, 4),
        Limits(4),
        cut=lambda ask: np.array([1, 3]) if len(ask.draft) else None,
    )
    assert seen[0] == [1, 2]


def test_nothing_is_asked_of_a_driver_that_cannot_matter() -> None:
    def allow(limit: int) -> int:
        raise AssertionError("one token is left, or nothing is ever drafted")

    assert tokens(run(FixedProposer(oracle, 3), Limits(1), allow=allow)) == [1]
    assert tokens(run(NoProposer(), Limits(3), allow=allow)) == [1, 2, 3]


@pytest.mark.parametrize("length", [1, 2, CONTEXT_BLOCK, CONTEXT_BLOCK + 1, 150])
def test_the_logits_after_a_prompt_come_in_order_and_in_blocks(length: int) -> None:
    distribution = random_distribution(VOCAB, seed=3)
    prompt = np.random.default_rng(1).integers(0, VOCAB, length).tolist()
    blocks = [
        event.logits
        for event in events(read_context(prompt), {"target": ScriptedModel(distribution)})
        if isinstance(event, ContextLogits)
    ]
    assert all(len(block) <= CONTEXT_BLOCK for block in blocks)
    expected = np.log([distribution(prompt[: n + 1]) for n in range(length)])
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-6)


def test_the_nodes_of_a_context_block_must_all_be_scored() -> None:
    ask = next(read_context([1, 2, 3]))
    assert isinstance(ask, Score) and ask.whole and ask.draft.tokens.tolist() == [2, 3]
