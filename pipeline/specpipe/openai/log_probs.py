"""The `logprobs` objects of chats, and of completions, there with the prompt's if it is repeated.

The shape of completions is the one that lm-evaluation-harness reads: an entry for every token id,
the first of the prompt null, `top_logprobs` with the most likely tokens and the actual one, no
value rounded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from specpipe.runtime.tokens import TextTokenizer
from specpipe.serve.pieces import Piece, PromptScores, Tops

Json = dict[str, Any]
_LEAST = -9999.0  # for minus infinity, which JSON does not have


@dataclass(frozen=True)
class Entry:
    """One token; the first one of a prompt has no value."""

    text: str
    value: float | None
    tops: tuple[tuple[str, float], ...] | None  # likeliest first; None: not reported


@dataclass
class LogProbs:
    """The entries of one answer, in the order of its tokens."""

    tokenizer: TextTokenizer
    tops: int  # likeliest tokens that are reported at every position
    chat: bool = False  # which of the two shapes
    entries: list[Entry] = field(default_factory=list)

    def add_prompt(self, prompt: Sequence[int], scores: PromptScores) -> None:
        """Append an entry for every token of a prompt; of its tops, the most likely is known."""
        self.entries.append(Entry(self._text(prompt[0]), None, None))
        for at, token in enumerate(prompt[1:]):
            top = ((scores.top_ids[at], scores.top_log_probs[at]),)
            self._add(token, scores.log_probs[at], top)

    def add_answer(self, piece: Piece) -> None:
        """Append an entry for every new token; without tops, a greedy one is the most likely."""
        for at, (token, value) in enumerate(zip(piece.tokens, piece.log_probs, strict=True)):
            self._add(token, value, piece.tops[at] if piece.tops else ())

    def _add(self, token: int, value: float, tops: Tops) -> None:
        found = dict(tops)
        if token in found or not self.chat:
            found[token] = value  # the very same number, by which clients see that it is the top
        texts = tuple((self._text(top), _finite(most)) for top, most in found.items())
        self.entries.append(Entry(self._text(token), _finite(value), texts if self.tops else None))

    def to_json(self, begin: int = 0) -> Json:
        """Return the object, from an entry on; offsets count characters from the first entry."""
        new = self.entries[begin:]
        if self.chat:
            return {"content": [_chat_entry(entry) for entry in new], "refusal": None}
        lengths = accumulate((len(entry.text) for entry in self.entries), initial=0)
        return {
            "tokens": [entry.text for entry in new],
            "token_logprobs": [entry.value for entry in new],
            "top_logprobs": [_best(entry.tops) for entry in new] if self.tops else None,
            "text_offset": list(lengths)[begin:-1],
        }

    def _text(self, token: int) -> str:
        """Return the text of one token, that of special tokens too."""
        return self.tokenizer.decode([token], special=True)


def _best(tops: tuple[tuple[str, float], ...] | None) -> dict[str, float] | None:
    """Return log probabilities by their text; of two tokens with one text, the likelier."""
    if tops is None:
        return None
    best: dict[str, float] = {}
    for text, value in tops:
        best[text] = max(value, best.get(text, value))
    return best


def _chat_entry(entry: Entry) -> Json:
    tops = [_scored(text, value) for text, value in entry.tops or ()]
    return {**_scored(entry.text, entry.value), "top_logprobs": tops}


def _scored(text: str, value: float | None) -> Json:
    """Return a token; its bytes are not known if it is a part of a character."""
    raw = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": value, "bytes": raw}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _LEAST
