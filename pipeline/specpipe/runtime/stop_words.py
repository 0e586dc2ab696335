"""Finds stop words in a growing answer, special tokens included, which have no text of their own.

A special token within a stop word is one mark, a surrogate, which no text has. The engine finds the
same words by their tokens: a special token is one token in both, and never a part of a word.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from tokenizers import AddedToken

_FIRST_MARK, _MOST_MARKS = 0xD800, 2048  # the surrogates


@dataclass(frozen=True)
class StopWords:
    """The stop words of a request, spelled in characters and marks."""

    words: frozenset[str] = frozenset()
    lengths: tuple[int, ...] = ()  # of the words: a search costs as many look-ups a character
    marks: Mapping[int, str] | None = None  # the mark of each special token in a word

    @staticmethod
    def of(texts: Iterable[str], added: Mapping[int, AddedToken]) -> "StopWords":
        """Return the stop words of a request; `added` are the tokenizer's added tokens."""
        given = [text for text in texts if text]
        special = {token.content: i for i, token in added.items() if token.special}
        found = sorted((c for c in special if any(c in text for text in given)), key=len)[::-1]
        found = found[:_MOST_MARKS]
        if not found:
            return StopWords(frozenset(given), _lengths(given))
        names = dict(zip(found, map(chr, count(_FIRST_MARK)), strict=False))
        pattern = re.compile("|".join(_pattern(added[special[name]]) for name in found))
        words = [
            pattern.sub(lambda hit: names[_longest(hit.group(), found)], text) for text in given
        ]
        marks = {special[name]: mark for name, mark in names.items()}
        return StopWords(frozenset(words), _lengths(words), marks)

    def mark(self, token: int) -> str:
        """Return the mark of a token; empty if no stop word contains it as a special token."""
        return self.marks.get(token, "") if self.marks else ""

    def first_end(self, text: str, begin: int) -> int | None:
        """Return where the first word ends that ends behind `begin`; None if none does."""
        return first_end(text, begin, self.words, self.lengths)


def _longest(text: str, names: Sequence[str]) -> str:
    """Return the token in a match of its pattern; the longest come first."""
    return next(name for name in names if name in text)


def _pattern(token: AddedToken) -> str:
    """Return what stands for a token in a text; some take the spaces next to them."""
    before, after = (r"\s*" if takes else "" for takes in (token.lstrip, token.rstrip))
    return f"{before}{re.escape(token.content)}{after}"


def _lengths(words: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted({len(word) for word in words}))


def first_end(text: str, begin: int, words: frozenset[str], lengths: Sequence[int]) -> int | None:
    """Return where the first of `words` ends that ends behind `begin`; None if none does.

    `lengths` are those of the words: the cost grows with them, not with the number of words.
    """
    for end in range(begin + 1, len(text) + 1):
        for length in lengths:
            if length <= end and text[end - length : end] in words:
                return end
    return None
