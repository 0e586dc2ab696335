"""A draft model whose vocabulary is padded to another size than the target's.

Models of one family share a tokenizer, but often pad the vocabulary to different sizes. Acceptance
compares distributions over the target's tokens, so the draft model is limited to these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specpipe.contracts import Draft, Extensions, Guesses, Ints, Logits, Runner, Scores, Verdict

STAND_IN = 0  # read by a draft for tokens without a row; this only makes its drafts worse
_NEVER = np.float32(-1e30)  # finite, so that banning all other tokens leaves a distribution


class InVocabulary:
    """A `Runner` that scores exactly the ids from 0 to `vocab_size` - 1, for any engine.

    Larger ids are never proposed. Ids that the engine lacks have probability 0; if the target
    commits one, the engine reads another token for it.
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
        """Switch to `sequence`; see `Runner`."""
        self._runner.follow(self._known(sequence))

    def score(self, draft: Draft) -> Scores:
        """Evaluate root and nodes, with logits over the target's ids."""
        scores = self._runner.score(self._readable(draft))
        return replace(scores, logits=self._aligned(scores.logits))

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Append the accepted tokens; see `Runner`."""
        (token,) = self._known([verdict.next_token])
        self._runner.commit(self._readable(draft), replace(verdict, next_token=token))

    def guess(self, hidden: Logits) -> Guesses:
        """Run the engine's heads; ids beyond the target's get probability 0."""
        guesses = self._runner.guess(hidden)
        known = guesses.tokens < self.vocab_size
        return Guesses(np.where(known, guesses.tokens, STAND_IN), np.where(known, guesses.probs, 0))

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the engine's drafter; ids beyond the target's get probability 0."""
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
    """Return `runner`, wrapped if its vocabulary size is not `vocab_size`."""
    return runner if runner.vocab_size == vocab_size else InVocabulary(runner, vocab_size)
