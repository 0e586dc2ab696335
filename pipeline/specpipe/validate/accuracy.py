"""Perplexity and agreement: every arm reads the same texts, token by token.

Speculation has no part in it. Answers that diverge at one close decision show little about a
quantized engine; the likelihood of every token shows more. A server is asked for the logits after
the tokens of a text; what it sends is reduced block by block, so memory does not grow with the
text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from specpipe.core.contracts import Floats, Ints, Logits
from specpipe.runtime.prompt_scores import log_normalizers
from specpipe.validate.trials import Arm, Likelihoods

ROWS = 64  # positions whose logits are in memory in float64


@dataclass(frozen=True)
class Text:
    """A prompt and the reference's answer to it."""

    number: int  # of the prompt
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """All of it."""
        return (*self.prompt, *self.answer)

    def cut(self, length: int) -> "Text":
        """Return the first `length` tokens, at least two."""
        kept = self.tokens[: max(2, length)]
        split = min(len(self.prompt), len(kept))
        return Text(self.number, kept[:split], kept[split:])


def read(text: Text, arm: Arm, blocks: Iterable[Logits]) -> Likelihoods:
    """Return how a model reads a text; `blocks` are the logits after its tokens, in order."""
    following = np.array(text.tokens[1:], np.int64)
    likelihoods: list[float] = []
    chosen: list[bool] = []
    for rows in _small(blocks):
        done = len(likelihoods)
        wanted = following[done : done + len(rows)]
        likelihoods += _log_likelihoods(rows[: len(wanted)], wanted).tolist()
        chosen += (rows[: len(wanted)].argmax(axis=1) == wanted).tolist()
    return Likelihoods(text.number, arm, tuple(likelihoods), tuple(chosen[len(text.prompt) - 1 :]))


def _small(blocks: Iterable[Logits]) -> Iterable[Logits]:
    for block in blocks:
        for begin in range(0, len(block), ROWS):
            yield block[begin : begin + ROWS]


def _log_likelihoods(rows: Logits, tokens: Ints) -> Floats:
    exact = rows.astype(np.float64)
    found: Floats = exact[np.arange(len(exact)), tokens] - log_normalizers(exact)
    return found
