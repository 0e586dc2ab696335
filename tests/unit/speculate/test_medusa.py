"""Medusa's drafts: which guess stands where, and whose hidden state it comes from."""

from collections.abc import Sequence

import numpy as np
import pytest

from specpipe.core.contracts import ROOT, Draft, Guesses, Sampling, Scores, Verdict
from specpipe.core.trees import complete_tree
from specpipe.speculate.medusa import MedusaProposer
from tests.helpers.scripted_model import ScriptedModel, proposed, random_distribution

TREE = complete_tree([(0, 0), (0, 1), (1,)])


class Heads(ScriptedModel):
    """Guesses 10 * (head + 1) + rank; remembers the hidden states that it was asked about."""

    def __init__(self) -> None:
        super().__init__(random_distribution(5, seed=1))
        self.asked: list[float] = []

    def guess(self, hidden: np.ndarray) -> Guesses:
        self.asked.append(float(hidden[0]))
        tokens = np.array([[10 * (k + 1) + r for r in range(4)] for k in range(3)])
        return Guesses(tokens, np.array([[0.5, 0.3, 0.1, 0.05]] * 3))


def drafted(proposer: MedusaProposer, limit: int, heads: Heads | None = None) -> Draft:
    return proposed(proposer.propose(limit), {"target": heads or Heads()})


def started(tree: Sequence[tuple[int, ...]] | None = TREE, nodes: int = 4) -> MedusaProposer:
    proposer = MedusaProposer("target", nodes, tree)
    proposer.start([1], Sampling())
    proposer.observe(drafted(proposer, 9), scores(1), Verdict((), 2))
    return proposer


def scores(rows: int) -> Scores:
    """Return scores whose hidden state of row i is i + 0.5."""
    return Scores(np.zeros((rows, 5), np.float32), np.arange(rows)[:, None] + np.float32(0.5))


def test_nothing_is_guessed_before_there_is_a_hidden_state() -> None:
    proposer = MedusaProposer("target", 4, TREE)
    proposer.start([1], Sampling())
    assert len(drafted(proposer, 9)) == 0


def test_the_guesses_of_head_k_stand_k_plus_1_deep() -> None:
    draft = drafted(started(), 9)
    assert draft.tokens.tolist() == [10, 11, 20, 21]
    assert draft.parents.tolist() == [ROOT, ROOT, 0, 0]
    assert draft.probs is None


def test_a_node_is_as_likely_as_its_heads_say() -> None:
    draft = drafted(started(), 9)
    assert draft.chances is not None
    assert draft.chances.tolist() == pytest.approx([0.5, 0.3, 0.5 * 0.5, 0.5 * 0.3])


def test_the_limit_cuts_levels() -> None:
    assert drafted(started(), 1).tokens.tolist() == [10, 11]
    assert len(drafted(started(), 0)) == 0


def test_a_request_for_fewer_tokens_uses_the_beginning_of_the_tree() -> None:
    assert drafted(started(nodes=2), 9).tokens.tolist() == [10, 11]


def test_the_heads_see_the_last_accepted_token() -> None:
    proposer, heads = started(), Heads()
    draft = drafted(proposer, 9, heads)
    proposer.observe(draft, scores(5), Verdict((0, 3), 1))
    drafted(proposer, 9, heads)
    proposer.observe(draft, scores(5), Verdict((), 1))
    drafted(proposer, 9, heads)
    assert heads.asked == [0.5, 4.5, 0.5]


def test_a_dynamic_tree_grows_where_the_heads_are_sure() -> None:
    draft = drafted(started(tree=None, nodes=3), 9)
    assert draft.tokens.tolist() == [10, 11, 20]  # 0.5, 0.3, 0.25
