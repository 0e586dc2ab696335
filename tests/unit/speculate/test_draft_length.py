"""When the number of guesses changes, and by how much."""

import numpy as np
import pytest

from specpipe.assembly import Slot
from specpipe.contracts import EMPTY, ROOT, Draft, Sampling, Scores, Verdict, chain
from specpipe.methods import DraftModel, DraftOptions, Lookahead, PromptLookup
from specpipe.speculate.decode import Limits
from specpipe.speculate.draft_length import AdaptiveLength, next_length
from specpipe.speculate.draft_model import DraftModelProposer
from specpipe.speculate.hybrid import HybridProposer
from specpipe.speculate.prompt_lookup import PromptLookupProposer
from tests.unit.speculate.scripted import FixedProposer, ScriptedRunner, always, random_law

VOCAB = 6
NOTHING = Scores(np.zeros((1, VOCAB), np.float32))


@pytest.mark.parametrize(
    ("length", "accepted", "after"), [(3, 3, 5), (3, 2, 2), (3, 0, 2), (7, 3, 8), (1, 0, 1)]
)
def test_a_whole_draft_earns_two_more_and_any_other_costs_one(
    length: int, accepted: int, after: int
) -> None:
    draft, path = chain([1, 1, 1]), tuple(range(accepted))
    assert next_length(length, draft, Verdict(path, 0), most=8) == after


def test_a_tree_is_whole_when_its_deepest_path_is() -> None:
    tree = Draft(np.array([1, 2, 3]), np.array([ROOT, ROOT, 1]))
    assert next_length(2, tree, Verdict((1, 2), 0), most=9) == 4
    assert next_length(2, tree, Verdict((0,), 0), most=9) == 1


def test_drafts_grow_and_shrink_with_what_becomes_of_them() -> None:
    proposer = AdaptiveLength(FixedProposer(always(1), 5), 5)
    proposer.start([0], Sampling())
    lengths = []
    for whole in (False, False, True, False, True, True):
        draft = proposer.propose(99)
        lengths.append(len(draft))
        proposer.observe(draft, NOTHING, Verdict(tuple(range(len(draft))) if whole else (), 0))
    assert lengths == [5, 4, 3, 5, 4, 5]
    proposer.start([0], Sampling())
    assert len(proposer.propose(99)) == 5 and len(proposer.propose(2)) == 2


def test_nothing_is_learnt_from_another_proposers_draft() -> None:
    proposer = AdaptiveLength(FixedProposer(always(1), 5), 5)
    proposer.start([0], Sampling())
    for draft in (EMPTY, chain([1, 2])):
        proposer.observe(draft, NOTHING, Verdict((), 0))
    assert len(proposer.propose(99)) == 5


def test_a_draft_that_is_not_confident_stops_before_it_draws() -> None:
    law = {0: [0.9, 0.1], 1: [0.5, 0.5]}

    def guesses(min_confidence: float, sampling: Sampling) -> list[int]:
        runner = ScriptedRunner(lambda context: np.array(law[context[-1]]), 2)
        proposer = DraftModelProposer(runner, 8, min_confidence)
        proposer.start([0], sampling)
        return proposer.propose(8).tokens.tolist()

    sampled = [guesses(0.6, Sampling(top_k=0, seed=seed)) for seed in range(30)]
    assert all(1 not in tokens[:-1] for tokens in sampled)  # after a 1 it is not confident
    assert any(1 in tokens for tokens in sampled)  # the unlikely token itself is kept
    assert guesses(0.6, Sampling()) == [0] * 8
    assert guesses(0.95, Sampling()) == guesses(0.95, Sampling(top_k=0)) == []


def test_a_hybrid_asks_its_second_source_only_where_the_first_has_nothing() -> None:
    hybrid = HybridProposer(PromptLookupProposer(3, 1, 3), FixedProposer(always(5), 4))
    assert hybrid.draft_nodes == 4
    hybrid.start([1, 2, 3, 1], Sampling())
    assert hybrid.propose(9).tokens.tolist() == [2, 3, 1]
    hybrid.observe(EMPTY, NOTHING, Verdict((), 4))
    assert hybrid.propose(2).tokens.tolist() == [5, 5]
    hybrid.observe(EMPTY, NOTHING, Verdict((), 1))
    assert hybrid.propose(1).tokens.tolist() == [4]


@pytest.mark.parametrize(
    "options",
    [
        PromptLookup("prompt_lookup", 3, 1, 3, max_concurrency=2),
        DraftModel("draft_model", DraftOptions("unused"), 3, max_concurrency=2),
        Lookahead("lookahead", 3, 3, 3, max_concurrency=2),
    ],
    ids=lambda options: options.method,
)
def test_above_max_concurrency_nothing_is_guessed_and_the_answer_stays(options) -> None:
    law = random_law(VOCAB, seed=1)
    load = [1, 3, 2, 9, 9, 1] * 9

    def steps(loads: list[int]):
        runners = {"target": ScriptedRunner(law, VOCAB), "draft": ScriptedRunner(law, VOCAB)}
        left = iter(loads)
        slot = Slot(runners, options)
        return list(
            slot.events([0, 1, 0, 1, 0], Sampling(), Limits(40), running=lambda: next(left))
        )

    busy, calm, full = steps(load), steps([2] * 50), steps([3] * 50)
    assert all(s.drafted == 0 for s, n in zip(busy, load, strict=False) if n > 2)
    assert sum(s.drafted for s in calm) > sum(s.drafted for s in busy) > 0
    assert sum(s.drafted for s in full) == 0
    answers = [[t for s in some for t in s.tokens] for some in (busy, calm, full)]
    assert answers[0] == answers[1] == answers[2]
