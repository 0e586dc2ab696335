"""Fakes with fixed answers: targets and proposers that look theirs up in a function."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from specpipe.contracts import (
    ROOT,
    Draft,
    Extensions,
    Floats,
    Guesses,
    Sampling,
    Scores,
    Verdict,
    chain,
)

Law = Callable[[Sequence[int]], Floats]  # the tokens so far -> distribution of the next


class ScriptedRunner:
    """A runner that looks its logits up in a law, and its heads' guesses in another.

    The hidden state of a token is the token and the one before it.
    """

    def __init__(
        self, law: Law, vocab_size: int, max_seq_len: int = 10_000, heads: Law | None = None
    ) -> None:
        self.chunk = 10_000  # prompt tokens a call
        self.pending = 0
        self.vocab_size, self.max_seq_len, self.law = vocab_size, max_seq_len, law
        self.heads = heads or law
        self.sequence: list[int] = []
        self.calls = 0

    def start(self, prompt: Sequence[int]) -> None:
        self.sequence = list(prompt)
        self.pending = len(prompt)

    def follow(self, sequence: Sequence[int]) -> None:
        self.sequence = list(sequence)

    def prefill(self) -> bool:
        if self.pending <= self.chunk:
            return False
        self.pending -= self.chunk
        return True

    def score(self, draft: Draft) -> Scores:
        self.calls += 1
        paths: list[list[int]] = [[]]
        for node in range(len(draft)):
            path, at = [], node
            while at != ROOT:
                path.append(int(draft.tokens[at]))
                at = int(draft.parents[at])
            paths.append(path[::-1])
        laws = [self.law(self.sequence + path) for path in paths]
        hidden = [[0, *self.sequence, *path][-2:] for path in paths]
        with np.errstate(divide="ignore"):
            logits = np.log(np.stack(laws)).astype(np.float32)
        return Scores(logits, np.array(hidden, np.float32))

    def guess(self, hidden: np.ndarray) -> Guesses:
        """Guess with eight heads that follow the law from each other's best guess."""
        context = [int(token) for token in hidden]
        tokens, probs = [], []
        for _ in range(9):
            law = self.heads(context)
            tokens.append(np.argsort(-law, kind="stable"))
            probs.append(law[tokens[-1]])
            context.append(int(tokens[-1][0]))
        return Guesses(np.stack(tokens)[1:], np.stack(probs)[1:])

    def extend(self, hidden: np.ndarray, states: np.ndarray, tokens: np.ndarray) -> Extensions:
        """Guess with a drafter that follows the law; its state is 1 and a path's last token."""
        before = [int(state[1]) if state[0] else int(hidden[-1]) for state in states]
        laws = np.stack([self.heads([a, int(b)]) for a, b in zip(before, tokens, strict=True)])
        best = np.argsort(-laws, axis=1, kind="stable")
        after = np.stack([np.ones_like(tokens), tokens], 1).astype(np.float32)
        return Extensions(best, np.take_along_axis(laws, best, 1), after)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        self.sequence += [*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token]


def random_law(vocab_size: int, seed: int, *, sharpness: float = 2.0) -> Law:
    """Return a fixed random distribution for every context of the last two tokens."""

    @functools.cache
    def after(*last: int) -> Floats:
        rng = np.random.default_rng([seed, *(token + 1 for token in last)])
        weights = np.exp(rng.normal(size=vocab_size) * sharpness)
        return weights / weights.sum()

    return lambda context: after(*(int(token) for token in context[-2:]))


class FixedProposer:
    """Proposes what a function of the sequence returns."""

    def __init__(self, guess: Callable[[list[int], int], Draft], draft_nodes: int) -> None:
        self.draft_nodes, self._guess = draft_nodes, guess
        self.tokens: list[int] = []

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        self.tokens = list(prompt)

    def propose(self, limit: int) -> Draft:
        return self._guess(self.tokens, min(limit, self.draft_nodes))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.tokens += [*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token]


def always(token: int) -> Callable[[list[int], int], Draft]:
    """Guess the same token again and again."""
    return lambda tokens, limit: chain([token] * max(0, limit))
