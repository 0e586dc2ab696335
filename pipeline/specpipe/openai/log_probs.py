"""The `logprobs` object of completions: of the prompt, if it is repeated, and of the answer.

The shape is the one that lm-evaluation-harness reads: an entry for every token id, the first of the
prompt null, `top_logprobs` with the most likely token and the actual one, no value rounded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specpipe.runtime.tokens import TextTokenizer
from specpipe.serve.pieces import Piece, PromptScores

Json = dict[str, Any]
_LEAST = -9999.0  # for minus infinity, which JSON does not have


@dataclass
class LogProbs:
    """The entries of one answer, in the order of its tokens."""

    tokenizer: TextTokenizer
    tops: bool  # whether the most likely token is reported
    entries: list[tuple[str, float | None, dict[str, float] | None]] = field(default_factory=list)

    def add_prompt(self, prompt: Sequence[int], scores: PromptScores) -> None:
        """Append an entry for every token of a prompt."""
        self.entries.append((self._text(prompt[0]), None, None))
        for at, token in enumerate(prompt[1:]):
            text, value = self._text(token), _finite(scores.log_probs[at])
            top = {text: value}
            if scores.top_ids[at] != token:
                most, highest = self._text(scores.top_ids[at]), _finite(scores.top_log_probs[at])
                top = {most: highest, text: max(value, highest) if most == text else value}
            self.entries.append((text, value, top if self.tops else None))

    def add_answer(self, piece: Piece) -> None:
        """Append an entry for every new token; greedy ones are the most likely."""
        for token, log_prob in zip(piece.tokens, piece.log_probs, strict=True):
            text, value = self._text(token), _finite(log_prob)
            self.entries.append((text, value, {text: value} if self.tops else None))

    def to_json(self, begin: int = 0) -> Json:
        """Return the object, from an entry on; offsets count characters from the first entry."""
        offsets, at = list[int](), 0
        for text, _, _ in self.entries:
            offsets.append(at)
            at += len(text)
        return {
            "tokens": [text for text, _, _ in self.entries[begin:]],
            "token_logprobs": [value for _, value, _ in self.entries[begin:]],
            "top_logprobs": [top for _, _, top in self.entries[begin:]] if self.tops else None,
            "text_offset": offsets[begin:],
        }

    def _text(self, token: int) -> str:
        """Return the text of one token, that of special tokens too."""
        return self.tokenizer.decode([token], special=True)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
