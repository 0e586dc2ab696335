"""Lookahead: the window's shape and steps, the pool's memory, and that both speed plain text up."""

import numpy as np
import pytest

from specpipe.config.speculation import Lookahead
from specpipe.core.contracts import EMPTY, ROOT, Draft, Sampling, Scores, Verdict
from specpipe.speculate.decode import Limits, Step, decode
from specpipe.speculate.lookahead import LookaheadProposer, Pool, Window, merge
from tests.helpers.scripted_model import ScriptedModel, proposed, run

VOCAB = 50
SIZES = [(4, 3, 4), (5, 4, 2), (2, 2, 1), (1, 2, 3), (7, 7, 7), (1, 5, 1), (3, 4, 0), (2, 6, 1)]
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def counting(context):
    """The next token is the last one plus one, always."""
    return np.eye(VOCAB)[(context[-1] + 1) % VOCAB]


def proposer(size: tuple[int, int, int]) -> LookaheadProposer:
    return LookaheadProposer(Lookahead("lookahead", *size))


def drafted(lookahead: LookaheadProposer, limit: int) -> Draft:
    return proposed(lookahead.propose(limit))


def steps_of(lookahead: LookaheadProposer, prompt: list[int], limits: Limits) -> list[Step]:
    decoding = decode(lookahead, prompt, Sampling(), limits)
    return run(decoding, {"target": ScriptedModel(counting)})


def path(draft: Draft, node: int) -> list[int]:
    found = []
    while node != ROOT:
        found.append(node)
        node = int(draft.parents[node])
    return found[::-1]


# --- the window ---------------------------------------------------------------------------------


def filled(levels: int, columns: int) -> Window:
    """Return a window whose token at level l, column i is 100 l + i."""
    window = Window(levels, [range(1, columns + levels - 1)])
    for level in range(1, levels):
        window.advance(0, [100 * level + i for i in range(-1, columns + levels - level - 1)])
    return window


def test_a_window_grows_by_a_level_and_shrinks_by_a_column_until_it_is_full() -> None:
    window, shapes = Window(3, [[1, 2, 3, 4, 5]]), []
    for _ in range(4):
        shapes.append([len(level) for level in window.levels])
        assert len(window.top(0)) == shapes[-1][-1] + (len(shapes[-1]) == 1)
        window.advance(0, [9] * len(window.top(0)))
    assert shapes == [[5], [4, 5], [3, 4, 4], [3, 4, 4]]


def test_a_token_of_the_window_sees_level_0_up_to_its_column_and_then_its_column() -> None:
    window = filled(levels=3, columns=4)
    tokens, parents = window.nodes(begin=2)
    draft = Draft(np.array([7, 8, *tokens]), np.array([ROOT, ROOT, *parents]), None, len(tokens))
    for column, node in enumerate(window.top(begin=2)):
        seen = [int(draft.tokens[n]) for n in path(draft, int(node))]
        level_0 = [3, 4, 5][:column]
        assert seen == [*level_0, 100 + column + 1, 200 + column]


def test_a_full_window_turns_its_columns_into_ngrams_and_drops_level_0() -> None:
    window = Window(3, [[11, 12], [20, 21, 22], [30, 31, 32]])
    assert window.advance(10, [40, 41, 42]) == [
        (10, 20, 30, 40), (11, 21, 31, 41), (12, 22, 32, 42),
    ]  # fmt: skip
    assert window.levels == [[21, 22], [30, 31, 32], [40, 41, 42]]


def test_a_window_of_one_level_is_made_of_what_the_target_says() -> None:
    window = Window(1, [[11, 12]])
    assert window.advance(10, [20, 21, 22]) == [(10, 20), (11, 21), (12, 22)]
    assert window.levels == [[21, 22]]


# --- the pool and the tree of n-grams -----------------------------------------------------------


def test_the_pool_forgets_what_was_not_seen_for_longest() -> None:
    pool = Pool(2, end_ids=())
    for ngram in ([1, 2, 3], [1, 4, 5], [1, 2, 3], [1, 6, 7], [8, 9, 9]):
        pool.add(ngram)
    assert pool.after(1) == [(6, 7), (2, 3)] and pool.after(8) == [(9, 9)] and pool.after(2) == []


def test_the_pool_drops_ngrams_with_the_end_and_may_hold_none() -> None:
    pool = Pool(3, end_ids=(5, 3))
    pool.add([1, 2, 3])
    assert pool.after(1) == []
    nothing = Pool(0, end_ids=())
    nothing.add([1, 2, 3])
    assert nothing.after(1) == []


def test_equal_beginnings_are_one_path_of_the_tree() -> None:
    tokens, parents = merge([(2, 3, 4), (2, 5, 4), (3, 3, 4), (2, 3, 4)], depth=2)
    assert tokens == [2, 3, 5, 3, 3] and parents == [ROOT, 0, 0, ROOT, 3]
    assert merge([(2, 3), (2, 4)], depth=1) == ([2], [ROOT])
    assert merge([], depth=3) == ([], [])


# --- the proposer -------------------------------------------------------------------------------


@sizes
def test_a_step_never_scores_more_than_was_planned_and_no_less_once_it_is_full(size) -> None:
    lookahead = proposer(size)
    tokens = [1, 2, 5, 1, 3, 5, 1, 4, 5, 1]
    lookahead.start(tokens, Sampling())
    window = 0
    for _ in range(12):
        draft = drafted(lookahead, 50)
        assert len(draft) <= lookahead.draft_nodes and draft.depth <= size[1] - 1
        verdict = Verdict((), 1)  # whatever the target thinks: the root comes back to 1
        scores = ScriptedModel(counting).score(tokens, draft)
        tokens += verdict.emitted(draft)
        lookahead.observe(draft, scores, verdict)
        window = draft.scratch
    assert window == lookahead.draft_nodes - size[2] * (size[1] - 1)


def test_a_window_finds_ngrams_that_neither_prompt_nor_output_had() -> None:
    """A target that counts goes on from the prompt's tokens in the window, before it is there."""
    prompt = [10, 20, 30, 0]
    steps = steps_of(proposer((4, 3, 4)), prompt, Limits(40))
    assert [t for s in steps for t in s.tokens] == list(range(1, 41))
    assert sum(s.accepted for s in steps) >= 5
    fewer = steps_of(proposer((1, 3, 4)), prompt, Limits(40))
    assert len(fewer) > len(steps)  # a column that is the root's own finds nothing new


def test_a_prompt_that_repeats_is_guessed_from_the_first_step_on() -> None:
    lookahead = proposer((2, 3, 2))
    lookahead.start([5, 6, 7, 1, 5, 8, 9, 1, 5], Sampling())
    draft = drafted(lookahead, 9)
    assert draft.tokens[:4].tolist() == [8, 9, 6, 7]
    assert draft.parents[:4].tolist() == [ROOT, 0, ROOT, 2] and draft.depth == 2


def window_of(lookahead: LookaheadProposer) -> list[int]:
    """Return the tokens of the window that the next step would score."""
    draft = drafted(lookahead, 9)
    return draft.tokens[len(draft) - draft.scratch :].tolist()


def test_a_step_that_scored_no_window_leaves_it_alone() -> None:
    lookahead = proposer((4, 3, 4))
    lookahead.start([1, 2, 3], Sampling())
    before = window_of(lookahead)
    for limit in (0, -1):
        assert len(drafted(lookahead, limit)) == 0
    lookahead.observe(EMPTY, Scores(np.zeros((1, VOCAB), np.float32)), Verdict((), 4))
    assert window_of(lookahead) == before


def test_a_window_that_the_driver_did_not_score_stays_as_it_is() -> None:
    lookahead = proposer((4, 3, 4))
    lookahead.start([1, 2, 3], Sampling())
    before = window_of(lookahead)
    draft = drafted(lookahead, 9).only(np.zeros(0, np.int64))
    lookahead.observe(draft, Scores(np.zeros((1, VOCAB), np.float32)), Verdict((), 4))
    assert window_of(lookahead) == before


@pytest.mark.parametrize("size", [(1, 1, 0), (1, 2, 0)])
def test_sizes_without_draft_tokens_are_plain_decoding(size) -> None:
    lookahead = proposer(size)
    assert lookahead.draft_nodes == 0
    steps = steps_of(lookahead, [0], Limits(5))
    assert [(s.tokens, s.drafted) for s in steps] == [((n,), 0) for n in range(1, 6)]


def test_the_window_begins_with_tokens_of_the_prompt_that_follow_from_the_seed() -> None:
    def first(seed: int) -> list[int]:
        lookahead = proposer((7, 4, 1))
        lookahead.start(range(40), Sampling(seed=seed))
        return drafted(lookahead, 1).tokens.tolist()

    assert first(1) == first(1) != first(2)
    assert set(first(1)) <= set(range(40))
