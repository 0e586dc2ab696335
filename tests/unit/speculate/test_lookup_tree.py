"""How votes of earlier copies and guesses of heads become one tree."""

import numpy as np

from specpipe.core.contracts import EMPTY, Draft, Guesses, Sampling, Scores, Verdict
from specpipe.speculate.growth import Heads
from specpipe.speculate.history import IndexedText
from specpipe.speculate.lookup_tree import (
    MOST_COPIES,
    Continuations,
    TreeLookup,
    find_continuations,
    grow_draft,
)
from tests.helpers.scripted_model import proposed

HEADS = Heads(Guesses(np.array([[5, 6], [7, 8]], np.int64), np.array([[0.6, 0.3], [0.5, 0.1]])))


def guess(prompt: list[int], limit: int = 10, *, nodes: int = 4, low: int = 1) -> Draft:
    lookup = TreeLookup(nodes, low, 4)
    lookup.start(prompt, Sampling())
    return proposed(lookup.propose(limit))


def grown(root: int, votes: Continuations, nodes: int, limit: int) -> Draft:
    return proposed(grow_draft(root, votes, HEADS, nodes, limit))


def paths(draft: Draft) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_what_followed_the_longer_copy_comes_first() -> None:
    prompt = [1, 2, 3, 9, 2, 4, 9, 1, 2]  # (1, 2) was followed by 3, (2) also by 4
    assert paths(guess(prompt, nodes=2, limit=1)) == [(3,), (4,)]


def test_what_followed_more_often_comes_first() -> None:
    assert paths(guess([1, 5, 1, 7, 1, 7, 1], nodes=2, limit=1)) == [(7,), (5,)]


def test_siblings_share_their_common_path() -> None:
    prompt = [1, 2, 3, 1, 2, 4, 1]
    assert set(paths(guess(prompt, nodes=3, limit=2))) == {(2,), (2, 3), (2, 4)}


def test_copies_below_the_smallest_size_have_no_vote() -> None:
    assert len(guess([1, 2, 3, 9, 2], low=2)) == 0
    assert len(guess([1, 2, 3, 9, 2], low=1)) > 0


def test_a_copy_at_the_very_beginning_counts_and_nothing_before_it_is_read() -> None:
    assert paths(guess([1, 2, 3, 1, 2], nodes=1)) == [(3,)]
    assert len(guess([1])) == 0


def test_only_the_longest_and_latest_copies_vote() -> None:
    prompt = [1, 2] * 3 + [1, 3] * MOST_COPIES + [1]
    votes = find_continuations(IndexedText(prompt), 1, 1, 1)
    assert set(votes.after) == {3}


def test_without_copies_the_heads_decide() -> None:
    tree = grown(1, Continuations(), 4, 10)
    assert paths(tree) == [(5,), (6,), (5, 7), (6, 7)]  # 0.6, 0.3, 0.6 * 0.5


def test_votes_outweigh_the_heads_where_much_repeats() -> None:
    votes = find_continuations(IndexedText([1, 9, 1, 9, 1, 9, 1, 9, 1]), 2, 1, 4)
    assert paths(grown(1, votes, 1, 10)) == [(9,)]


def test_copies_and_heads_that_agree_are_one_node() -> None:
    votes = find_continuations(IndexedText([1, 5, 1]), 1, 1, 4)
    assert paths(grown(1, votes, 2, 1)) == [(5,), (6,)]


def test_limit_and_number_of_nodes_are_kept() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 1]
    assert guess(prompt, limit=2).depth == 2
    assert len(guess(prompt, nodes=3)) == 3
    assert len(guess(prompt, limit=0)) == 0


def test_committed_tokens_have_a_vote() -> None:
    lookup = TreeLookup(2, 1, 3)
    lookup.start([1, 2], Sampling())
    for token in (3, 4, 1):
        lookup.observe(EMPTY, Scores(None), Verdict((), token))  # type: ignore[arg-type]
    assert paths(proposed(lookup.propose(5))) == [(2,), (2, 3)]
