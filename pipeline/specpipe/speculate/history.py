"""The tokens before a position, and which words they may complete; neither is read over again.

A position costs as much after ten tokens as after ten thousand, with one forbidden word or a
thousand: tokens are counted once, as they come, and words are found by what precedes their last
token.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import overload

import numpy as np

from specpipe.contracts import Ints


class _Committed:
    """Tokens that stay, with how often each was seen; counted when somebody asks."""

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
        """Return where `counted` has a token; None if it was not seen."""
        return self._places.get(token)


class History(Sequence[int]):
    """Committed tokens and, behind a draft's node, those of the path to it."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._committed = _Committed(tokens)
        self._path: tuple[int, ...] = ()

    @staticmethod
    def of(tokens: Sequence[int]) -> "History":
        """Return `tokens` as a history; a history is returned as it is."""
        return tokens if isinstance(tokens, History) else History(tokens)

    def __add__(self, path: Sequence[int]) -> "History":
        """Return this history and a path; what is committed is shared, not copied."""
        longer = History.__new__(History)
        longer._committed, longer._path = self._committed, (*self._path, *path)
        return longer

    def extend(self, tokens: Iterable[int]) -> None:
        """Commit further tokens, here and in every history that was made from this one."""
        assert not self._path
        self._committed.tokens.extend(tokens)

    def __len__(self) -> int:
        return len(self._committed.tokens) + len(self._path)

    def __iter__(self) -> Iterator[int]:
        return chain(self._committed.tokens, self._path)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        return [*self._committed.tokens, *self._path][index]

    def last(self, count: int) -> tuple[int, ...]:
        """Return the last `count` tokens, or all if there are fewer."""
        missing = count - len(self._path)
        if missing <= 0:
            return self._path[len(self._path) - count :]
        return (*self._committed.tokens[-missing:], *self._path)

    def counted(self) -> tuple[Ints, Ints]:
        """Return the distinct tokens and how often each occurs; not to be written to."""
        seen, counts = self._committed.counted()
        if not self._path:
            return seen, counts
        counts, new = counts.copy(), dict[int, int]()
        for token in self._path:
            place = self._committed.place(token)
            if place is None:
                new[token] = new.get(token, 0) + 1
            else:
                counts[place] += 1
        return (
            np.concatenate([seen, np.fromiter(new, np.int64, len(new))]),
            np.concatenate([counts, np.fromiter(new.values(), np.int64, len(new))]),
        )


class Completions:
    """Which tokens would complete one of many words."""

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

        With `within`, a word must begin among that many last tokens.
        """
        most = len(history) if within is None else within
        found = []
        for length, starts in self._by_length.items():
            if length <= most:
                ends = starts.get(history.last(length) if length else ())
                if ends is not None:
                    found.append(ends)
        return found
