"""Tokens counted as they come, and words found by their beginnings, against reading all again."""

from collections import Counter

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.speculate.history import (
    MOST_SEARCHED,
    Completions,
    History,
    IndexedText,
    TokenArray,
)
from specpipe.speculate.sampling import Adjustment, adjust


def counts_of(history: History) -> dict[int, int]:
    seen, counts = history.counted()
    assert len(set(seen.tolist())) == len(seen) == len(counts)
    return dict(zip(seen.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_tokens_are_counted_however_they_come(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 200, 300).tolist()
    history = History(whole[:50])
    for begin in range(50, 300, 7):
        if rng.random() < 0.5:  # counted now, or later with others
            assert counts_of(history) == Counter(whole[:begin])
        path = rng.integers(0, 400, 4).tolist()
        assert counts_of(history + path) == Counter(whole[:begin] + path)
        assert counts_of((history + path[:2]) + path[2:]) == Counter(whole[:begin] + path)
        history.extend(whole[begin : begin + 7])
    assert list(history) == whole and counts_of(history) == Counter(whole)


def test_a_path_changes_nothing_that_is_committed() -> None:
    history, path = History([1, 2]), [3]
    assert counts_of(history + path) == {1: 1, 2: 1, 3: 1}
    assert list(history) == [1, 2] and counts_of(history) == {1: 1, 2: 1}
    history.extend([4])
    assert list(history + path) == [1, 2, 4, 3]


@pytest.mark.parametrize("count", range(6))
def test_the_last_tokens_are_those_of_the_path_first(count: int) -> None:
    whole = [1, 2, 3, 4]
    expected = tuple(whole[-count:]) if count else ()
    for cut in range(5):
        assert (History(whole[:cut]) + whole[cut:]).last(count) == expected


@pytest.mark.parametrize("seed", range(5))
def test_the_tokens_that_complete_a_word_are_those_that_a_search_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [tuple(rng.integers(0, 3, rng.integers(1, 5)).tolist()) for _ in range(20)]
    completions = Completions(words)
    for length in range(12):
        tokens = rng.integers(0, 3, length).tolist()
        for within in (None, *range(length + 1)):
            reach = tokens if within is None else tokens[len(tokens) - within :]
            expected = {w[-1] for w in words if tuple([*reach, w[-1]][-len(w) :]) == w}
            groups = completions.after(History(tokens), within)
            assert {int(t) for group in groups for t in group} == expected


def test_many_positions_of_one_request_are_as_single_ones() -> None:
    """A prepared position has the distribution that its history gives it."""
    options = Sampling(
        top_k=0, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=-0.1,
        bad_words=((3,), (4, 5), (6, 7, 8)), min_tokens=9, end_ids=(1, 2),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    ready, history = Adjustment(options), History([4, 6])
    for generated in range(20):
        logits = rng.normal(size=12).astype(np.float32)
        alone = adjust(logits, options, [*history], generated)
        np.testing.assert_array_equal(ready(logits, history, generated), alone)
        history.extend([int(rng.integers(4, 9))])


class _Whole(list[int]):
    """Tokens that may not be read from front to back, nor copied."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        raise AssertionError("all tokens were read again")

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            assert stop - start < 10, "the history was copied"
        return super().__getitem__(index)


def test_a_position_does_not_read_the_history_again() -> None:
    options = Sampling(top_k=0, repetition_penalty=1.3, bad_words=((1, 2), (3,)))
    ready, history = Adjustment(options), History(range(50))
    logits = np.zeros(60, np.float32)
    ready(logits, history, 0)  # counts what is there
    committed = history.committed
    committed.tokens = _Whole(committed.tokens)
    path = [3, 4]
    ready(logits, history + path, 2)
    Completions([(1, 2), (3,)]).after(history + path, within=5)


def test_an_array_of_tokens_grows_and_its_views_do_not() -> None:
    text, expected = TokenArray([5, 6]), [5, 6]
    before = text.tokens
    for count in (1, 0, 3, 40, 2):
        more = list(range(count))
        text.extend(more)
        expected += more
        assert text.tokens.tolist() == expected
    assert before.tolist() == [5, 6] and TokenArray().tokens.tolist() == []


def copies(tokens: list[int], longest: int) -> list[tuple[int, int]]:
    """Return all copies of the last tokens, by comparing each place."""
    found = []
    for end in range(len(tokens) - 1):
        length = 0
        while length < min(longest, end + 1) and tokens[end - length] == tokens[-1 - length]:
            length += 1
        found += [(length, end)] if length else []
    return sorted(found)


@pytest.mark.parametrize("longest", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_copies_of_the_last_tokens_are_those_that_a_comparison_finds(
    seed: int, longest: int
) -> None:
    whole = np.random.default_rng(seed).integers(0, 2 + seed, 90).tolist()
    text = IndexedText(whole[:1])
    for end in range(1, 90):
        text.extend(whole[end : end + 1])
        assert text.tokens == whole[: end + 1]
        for most in (1, 4, 100):
            assert text.copies(longest, most) == copies(text.tokens, longest)[-most:]


def test_a_text_of_one_token_is_not_searched_as_a_whole() -> None:
    text = IndexedText([5] * 10 * MOST_SEARCHED)
    last = len(text.tokens) - 1
    assert text.copies(10, 64) == [(10, end) for end in range(last - 64, last)]
    other = IndexedText([*[5, 6, 7] * 10 * MOST_SEARCHED, 1, 6, 7])
    assert [length for length, _ in other.copies(10, 64)] == [2] * 64
    assert IndexedText([5]).copies(10, 64) == []
