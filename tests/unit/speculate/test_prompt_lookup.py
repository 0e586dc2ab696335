"""Which earlier text is copied."""

from specpipe.core.contracts import EMPTY, Sampling, Scores, Verdict
from specpipe.speculate.prompt_lookup import PromptLookupProposer
from tests.helpers.scripted_model import proposed


def guess(prompt: list[int], limit: int = 10, *, draft: int = 3, low: int = 1, high: int = 3):
    proposer = PromptLookupProposer(draft, low, high)
    proposer.start(prompt, Sampling())
    return proposed(proposer.propose(limit)).tokens.tolist()


def test_copies_what_followed_the_last_tokens_before() -> None:
    assert guess([1, 2, 3, 4, 5, 9, 1, 2]) == [3, 4, 5]


def test_the_longest_match_wins_over_a_later_short_one() -> None:
    assert guess([7, 1, 2, 5, 5, 5, 8, 2, 6, 6, 6, 7, 1, 2]) == [5, 5, 5]


def test_the_latest_match_with_enough_text_behind_it_wins() -> None:
    assert guess([1, 4, 4, 4, 1, 5, 5, 5, 1]) == [5, 5, 5]


def test_a_match_near_the_end_falls_back_to_the_one_with_most_text() -> None:
    assert guess([3, 3, 3]) == [3]
    assert guess([1, 2, 3, 1, 2]) == [3, 1, 2]


def test_nothing_repeats_nothing_is_guessed() -> None:
    assert guess([1, 2, 3, 4]) == []
    assert guess([1]) == []


def test_matches_below_the_smallest_size_do_not_count() -> None:
    assert guess([1, 2, 3, 9, 2], low=1) == [3, 9, 2]
    assert guess([1, 2, 3, 9, 2], low=2) == []


def test_the_limit_is_kept() -> None:
    assert guess([1, 2, 3, 4, 5, 1], limit=2) == [2, 3]
    assert guess([1, 2, 3, 4, 5, 1], limit=0) == []


def test_committed_tokens_are_looked_up_too() -> None:
    proposer = PromptLookupProposer(2, 1, 3)
    proposer.start([1, 2], Sampling())
    for token in (3, 4, 1):
        proposer.observe(EMPTY, Scores(None), Verdict((), token))  # type: ignore[arg-type]
    assert proposed(proposer.propose(5)).tokens.tolist() == [2, 3]
