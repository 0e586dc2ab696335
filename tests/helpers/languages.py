"""Regular languages over a few tokens, with a judge that finds what is permitted by brute force."""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from specpipe.core.contracts import Mask
from specpipe.core.guide import Guide
from specpipe.runtime.grammars import Compiler, Grammars
from specpipe.speculate.constrained import Constraint

TEXTS = ("a", "b", "ab", "ba", "c", "abc", "<end>")
LONGEST = 9  # characters of the words that the judge knows; no language here has longer ones


class _Texts:
    """A tokenizer for llguidance that splits a text into the longest tokens."""

    bos_token_id = None

    def __init__(self, texts: Sequence[str]) -> None:
        self.tokens = [text.encode() for text in texts]
        self.eos_token_id = len(texts) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        text, ids = bytes(text, "utf-8") if isinstance(text, str) else text, []
        while text:
            fitting = [i for i, token in enumerate(self.tokens) if text.startswith(token)]
            ids.append(max(fitting, key=lambda i: len(self.tokens[i])))
            text = text[len(self.tokens[ids[-1]]) :]
        return ids


@functools.cache
def compiler(texts: tuple[str, ...]) -> Compiler:
    wrapper: Any = TokenizerWrapper(_Texts(texts))
    return Compiler(LLTokenizer(wrapper), len(texts))


@dataclass(frozen=True)
class Language:
    """The words that match `pattern`, in tokens with these texts; the last token is the end."""

    pattern: str
    texts: tuple[str, ...] = ("a", "b", "ab", "<end>")

    @property
    def end(self) -> int:
        return len(self.texts) - 1

    def constraint(self, end_ids: Sequence[int]) -> Constraint:
        """Return the constraint of the code under test, for answers that end with `end_ids`."""
        grammars = Grammars(lambda: compiler(self.texts))
        return grammars.constraint(Guide("regex", self.pattern), end_ids)

    def permitted(self, tokens: Sequence[int]) -> Mask:
        """Return what may follow some tokens of an answer, by trying every word."""
        begun = "".join(self.texts[token] for token in tokens)
        words = self._words
        texts = [any(word.startswith(begun + text) for word in words) for text in self.texts[:-1]]
        return np.array([*texts, begun in words])

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Tell whether an answer can only end."""
        permitted = self.permitted(tokens)
        return bool(permitted[-1]) and not permitted[:-1].any()

    @functools.cached_property
    def _words(self) -> frozenset[str]:
        return _words_of(self.pattern, "".join(sorted(set("".join(self.texts[:-1])))))


@functools.cache
def _words_of(pattern: str, letters: str) -> frozenset[str]:
    lengths = range(LONGEST + 1)
    every = ("".join(word) for n in lengths for word in itertools.product(letters, repeat=n))
    return frozenset(word for word in every if re.fullmatch(pattern, word))
