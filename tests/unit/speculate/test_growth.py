"""Trees that are grown level by level, by hand."""

from typing import Literal

import numpy as np

from specpipe.config.speculation import ReDrafter
from specpipe.core.contracts import ROOT, Draft, Extensions, Guesses, Sampling, Scores, Verdict
from specpipe.speculate.growth import Node, Recurrent, as_draft, beams, grow_levels, likeliest
from specpipe.speculate.redrafter import ReDrafterProposer, build
from tests.helpers.scripted_model import proposed

# last token -> what follows it; the state counts how many tokens led there
AFTER = {
    1: {2: 0.6, 3: 0.3, 4: 0.1},
    2: {5: 0.5, 6: 0.4, 7: 0.1},
    3: {8: 0.9, 9: 0.1, 2: 0.0},
    5: {1: 1.0, 2: 0.0, 3: 0.0},
    8: {1: 0.5, 4: 0.3, 5: 0.2},
}


class Drafter:
    """A model of which only `extend` is asked; it notes the batches and the states."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.states: list[list[float]] = []

    def extend(self, hidden: np.ndarray, states: np.ndarray, tokens: np.ndarray) -> Extensions:
        self.batches.append(tokens.tolist())
        self.states.append(states[:, 0].tolist())
        rows = [AFTER.get(token, {0: 0.5, 1: 0.3, 2: 0.2}) for token in tokens.tolist()]
        return Extensions(
            np.array([list(row) for row in rows]), np.array([list(r.values()) for r in rows]),
            states + 1,
        )  # fmt: skip

    def score(self, tokens: object, draft: Draft) -> Scores:
        raise AssertionError

    def guess(self, hidden: np.ndarray) -> Guesses:
        raise AssertionError


def levels_of(drafter: Drafter, *, asked: int, levels: int, widest: int) -> list[list[Node]]:
    predictor = Recurrent("target", np.zeros(1, np.float32), asked, levels)
    return proposed(grow_levels(Node(1), predictor.after, widest, 10), {"target": drafter})


def path(node: Node) -> tuple[int, ...]:
    return (*path(node.parent), node.token) if node.parent else ()


def test_each_level_asks_behind_its_likeliest_nodes_and_hands_their_states_on() -> None:
    drafter = Drafter()
    found = levels_of(drafter, asked=2, levels=3, widest=4)
    assert drafter.batches == [[1], [2, 3], [5, 8]]  # 0.6, 0.3; then 0.6 * 0.5, 0.3 * 0.9
    assert drafter.states == [[0], [1, 1], [2, 2]]
    assert [path(node) for node in found[1]] == [(2, 5), (3, 8), (2, 6), (2, 7)]


def test_it_goes_no_deeper_than_the_drafter() -> None:
    assert len(levels_of(Drafter(), asked=2, levels=2, widest=4)) == 2


def test_the_likeliest_nodes_of_all_levels_are_a_closed_tree() -> None:
    found = likeliest(levels_of(Drafter(), asked=2, levels=3, widest=4), 5)
    assert [path(node) for node in found] == [(2,), (3,), (2, 5), (2, 5, 1), (3, 8)]
    draft = as_draft(found)
    assert draft.tokens.tolist() == [2, 3, 5, 1, 8]
    assert draft.parents.tolist() == [ROOT, ROOT, 0, 2, 1]


def test_behind_a_node_that_it_was_not_asked_for_it_knows_nothing() -> None:
    """Copies bring such nodes into a tree, and what stands behind them may be the likeliest."""
    drafter = Drafter()
    predictor = Recurrent("target", np.zeros(1, np.float32), 1, 3)

    def known(level: list[Node]) -> list[bool]:
        shares = proposed(predictor.after(level), {"target": drafter})
        return [bool(each) for each in shares]

    root = Node(1)
    asked, other = Node(2, root, 0.6, 1), Node(3, root, 0.5, 1)
    assert known([root]) == [True]
    assert known([asked, other]) == [True, False]
    below = [Node(8, other, 0.5, 2), Node(5, asked, 0.3, 2)]
    assert known(below) == [False, True]
    assert drafter.batches == [[1], [2], [5]]


def test_what_can_hardly_be_right_has_no_row() -> None:
    tokens = {node.token for node in levels_of(Drafter(), asked=2, levels=2, widest=9)[1]}
    assert tokens == {5, 6, 7, 8, 9}  # 2 behind 3 has no chance at all


def test_beams_that_begin_alike_share_their_beginning() -> None:
    found = beams(levels_of(Drafter(), asked=2, levels=2, widest=2))
    assert [path(node) for node in found] == [(2,), (3,), (2, 5), (3, 8)]
    narrow = beams(levels_of(Drafter(), asked=3, levels=2, widest=3))
    assert [path(node) for node in narrow] == [(2,), (3,), (2, 5), (3, 8), (2, 6)]


def test_a_beam_that_nothing_goes_on_from_is_left_out() -> None:
    """As upstream: only the best beams of the last level are checked."""
    found = beams(levels_of(Drafter(), asked=3, levels=3, widest=1))
    assert [path(node) for node in found] == [(2,), (2, 5), (2, 5, 1)]


def test_the_proposer_guesses_from_its_second_step_on_and_keeps_to_the_limit() -> None:
    proposer = ReDrafterProposer(num_beams=2, length=3)

    def drafted(limit: int) -> Draft:
        return proposed(proposer.propose(limit), {"target": Drafter()})

    proposer.start([7, 7], Sampling())
    assert not len(drafted(5))
    scores = Scores(np.zeros((1, 9), np.float32), np.zeros((1, 1), np.float32))
    proposer.observe(as_draft([]), scores, Verdict((), 1))
    assert proposer.draft_nodes == 6 and 0 < len(drafted(5)) <= 6
    assert drafted(2).depth == 2 and not len(drafted(0))


def test_fixed_beams_have_their_full_length_however_unlikely_their_ends_are() -> None:
    """As in an engine of TensorRT-LLM; else a level below `LEAST_CHANCE` is not reached."""

    def depth_of(draft_length: Literal["adaptive", "fixed"]) -> int:
        options = ReDrafter("redrafter", "unused", 2, 6, draft_length=draft_length)
        proposer = build(options, {})
        proposer.start([7, 7], Sampling())
        scores = Scores(np.zeros((1, 9), np.float32), np.zeros((1, 1), np.float32))
        proposer.observe(as_draft([]), scores, Verdict((), 1))
        return proposed(proposer.propose(6), {"target": Drafter()}).depth

    assert depth_of("fixed") == 6
    assert depth_of("adaptive") == 4
