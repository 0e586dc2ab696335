"""A draft whose table of tokens is longer or shorter than the target's, where padding differs.

Models of one kind share a tokenizer, but often not the number of rows that it was rounded up to.
Acceptance compares distributions over the target's tokens, so the draft must speak of these alone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specpipe.contracts import Draft, Extensions, Guesses, Ints, Logits, Runner, Scores, Verdict

STAND_IN = 0  # what a draft reads for a token that it has no row for; it only makes guesses worse
_NEVER = np.float32(-1e30)  # finite, so that bans on all other tokens leave a law


class InVocabulary:
    """A `Runner` that scores exactly the ids from 0 to `vocab_size` - 1, whatever its engine has.

    Ids beyond are never proposed; ids that the engine lacks get no probability, and are read as
    another token where the target committed one.
    """

    def __init__(self, runner: Runner, vocab_size: int) -> None:
        self.vocab_size, self.max_seq_len = vocab_size, runner.max_seq_len
        self._runner = runner

    def start(self, prompt: Sequence[int]) -> None:
        """Take `prompt`; see `Runner`."""
        self._runner.start(self._known(prompt))

    def prefill(self) -> bool:
        """Run one chunk of the prompt; see `Runner`."""
        return self._runner.prefill()

    def follow(self, sequence: Sequence[int]) -> None:
        """Become `sequence`; see `Runner`."""
        self._runner.follow(self._known(sequence))

    def score(self, draft: Draft) -> Scores:
        """Evaluate root and nodes, with logits over the target's ids."""
        scores = self._runner.score(self._readable(draft))
        return replace(scores, logits=self._aligned(scores.logits))

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Append what was accepted; see `Runner`."""
        (token,) = self._known([verdict.next_token])
        self._runner.commit(self._readable(draft), replace(verdict, next_token=token))

    def guess(self, hidden: Logits) -> Guesses:
        """Ask the engine's heads; an id beyond the target's is taken for impossible."""
        guesses = self._runner.guess(hidden)
        known = guesses.tokens < self.vocab_size
        return Guesses(np.where(known, guesses.tokens, STAND_IN), np.where(known, guesses.probs, 0))

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Ask the engine's drafter; an id beyond the target's is taken for impossible."""
        found = self._runner.extend(hidden, states, self._readable_tokens(tokens))
        known = found.tokens < self.vocab_size
        return Extensions(
            np.where(known, found.tokens, STAND_IN), np.where(known, found.probs, 0), found.states
        )

    def _known(self, tokens: Sequence[int]) -> Sequence[int]:
        size = self._runner.vocab_size
        if size >= self.vocab_size:
            return tokens
        return [token if token < size else STAND_IN for token in tokens]

    def _readable(self, draft: Draft) -> Draft:
        return replace(draft, tokens=self._readable_tokens(draft.tokens))

    def _readable_tokens(self, tokens: Ints) -> Ints:
        return np.where(tokens < self._runner.vocab_size, tokens, STAND_IN)

    def _aligned(self, logits: Logits) -> Logits:
        missing = self.vocab_size - logits.shape[1]
        if missing <= 0:
            return logits[:, : self.vocab_size]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=_NEVER)


def in_vocabulary(runner: Runner, vocab_size: int) -> Runner:
    """Return `runner`, made to speak of `vocab_size` ids if it does not already."""
    return runner if runner.vocab_size == vocab_size else InVocabulary(runner, vocab_size)
