"""The tokens before a position, and the words that the next token may complete.

The cost of a position does not grow with the number of tokens or of forbidden words. Tokens are
counted once, when they arrive, and words are looked up by the tokens before their last one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import overload

import numpy as np

from specpipe.core.contracts import Ints

MOST_SEARCHED = 1024  # copies of the last two tokens


class Committed:
    """Committed tokens and their counts, which are updated on demand."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = list(tokens)
        self._places: dict[int, int] = {}  # token -> its place in the two arrays
        self._seen = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.int64)
        self._counted = 0  # tokens

    def counted(self) -> tuple[Ints, Ints]:
        """Return the distinct tokens and their counts, as views."""
        for token in self.tokens[self._counted :]:
            place = self._places.setdefault(token, len(self._places))
            if place == len(self._seen):
                self._seen = np.concatenate([self._seen, np.zeros_like(self._seen)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._seen[place] = token
            self._counts[place] += 1
        self._counted = len(self.tokens)
        size = len(self._places)
        return self._seen[:size], self._counts[:size]

    def place(self, token: int) -> int | None:
        """Return the index of a token in `counted`; None if it has not occurred."""
        return self._places.get(token)


class History(Sequence[int]):
    """Committed tokens, followed by those of the path to a draft node, if any."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.committed = Committed(tokens)
        self._path: tuple[int, ...] = ()

    @staticmethod
    def of(tokens: Sequence[int]) -> "History":
        """Return `tokens` as a history; a history is returned as it is."""
        return tokens if isinstance(tokens, History) else History(tokens)

    def __add__(self, path: Sequence[int]) -> "History":
        """Return this history followed by a path; committed tokens are shared, not copied."""
        longer = History.__new__(History)
        longer.committed, longer._path = self.committed, (*self._path, *path)
        return longer

    def extend(self, tokens: Iterable[int]) -> None:
        """Commit further tokens, here and in every history that was made from this one."""
        assert not self._path
        self.committed.tokens.extend(tokens)

    def __len__(self) -> int:
        return len(self.committed.tokens) + len(self._path)

    def __iter__(self) -> Iterator[int]:
        return chain(self.committed.tokens, self._path)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if not self._path:
            return self.committed.tokens[index]
        return [*self.committed.tokens, *self._path][index]

    def last(self, count: int) -> tuple[int, ...]:
        """Return the last `count` tokens, or all if there are fewer."""
        missing = count - len(self._path)
        if missing <= 0:
            return self._path[len(self._path) - count :]
        return (*self.committed.tokens[-missing:], *self._path)

    def counted(self) -> tuple[Ints, Ints]:
        """Return the distinct tokens and their counts; the arrays must not be changed."""
        seen, counts = self.committed.counted()
        if not self._path:
            return seen, counts
        counts, new = counts.copy(), dict[int, int]()
        for token in self._path:
            place = self.committed.place(token)
            if place is None:
                new[token] = new.get(token, 0) + 1
            else:
                counts[place] += 1
        return (
            np.concatenate([seen, np.fromiter(new, np.int64, len(new))]),
            np.concatenate([counts, np.fromiter(new.values(), np.int64, len(new))]),
        )


class TokenArray:
    """Tokens to search, as an array that grows in place."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._array = np.array(list(tokens), np.int64)
        self._count = len(self._array)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        count = self._count + len(tokens)
        if count > len(self._array):
            more = np.zeros(count, np.int64)
            self._array = np.concatenate([self._array[: self._count], more])
        self._array[self._count : count] = tokens
        self._count = count

    @property
    def tokens(self) -> Ints:
        """Return all tokens [n], as a view that does not grow."""
        return self._array[: self._count]


class IndexedText:
    """Tokens to search for copies of the last ones: the places of tokens and of pairs are known."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._places: dict[int, list[int]] = {}  # of each token, ascending
        self._pairs: dict[tuple[int, int], list[int]] = {}  # of the second one, ascending
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        for token in tokens:
            place = len(self.tokens)
            if place:
                self._pairs.setdefault((self.tokens[-1], token), []).append(place)
            self._places.setdefault(token, []).append(place)
            self.tokens.append(token)

    def copies(self, longest: int, most: int) -> list[tuple[int, int]]:
        """Return the earlier copies of the last tokens: their lengths, and where they end.

        These are the `most` longest ones, of equally long ones the latest; the best is last. None
        counts as longer than `longest`. Of the last two tokens, only the latest MOST_SEARCHED
        copies are looked at.
        """
        tokens, found = self.tokens, list[tuple[int, int]]()
        pairs = self._pairs[tokens[-2], tokens[-1]] if longest > 1 and len(tokens) > 1 else []
        whole = 0  # copies that could not be longer
        for end in islice(reversed(pairs), 1, MOST_SEARCHED + 1):
            length, bound = 2, min(longest, end + 1)
            while length < bound and tokens[end - length] == tokens[-1 - length]:
                length += 1
            found.append((length, end))
            whole += length == longest
            if whole == most:
                break
        known = {end for _, end in found}
        for end in islice(reversed(self._places[tokens[-1]]), 1, None):
            if len(found) >= most:
                break
            if end not in known:
                found.append((1, end))
        return sorted(found)[-most:]


class Completions:
    """Finds the tokens that would complete one of many words."""

    def __init__(self, words: Iterable[tuple[int, ...]]) -> None:
        found: dict[int, dict[tuple[int, ...], list[int]]] = {}
        for *start, end in words:
            found.setdefault(len(start), {}).setdefault(tuple(start), []).append(end)
        self._by_length = {
            length: {start: np.unique(ends) for start, ends in starts.items()}
            for length, starts in found.items()
        }

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def after(self, history: History, within: int | None = None) -> list[Ints]:
        """Return the tokens that would complete a word after `history`, in groups.

        With `within`, a word must begin among the last `within` tokens.
        """
        most = len(history) if within is None else within
        found = []
        for length, starts in self._by_length.items():
            if length <= most:
                ends = starts.get(history.last(length) if length else ())
                if ends is not None:
                    found.append(ends)
        return found
