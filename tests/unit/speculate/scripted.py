"""Fakes with fixed answers: targets and proposers that look theirs up in a function."""

from collections.abc import Callable, Sequence

import numpy as np

from specpipe.contracts import ROOT, Draft, Floats, Sampling, Scores, Verdict, chain

Law = Callable[[Sequence[int]], Floats]  # the tokens so far -> distribution of the next


class ScriptedRunner:
    """A runner that looks its logits up in a law."""

    def __init__(self, law: Law, vocab_size: int, max_seq_len: int = 10_000) -> None:
        self.vocab_size, self.max_seq_len, self.law = vocab_size, max_seq_len, law
        self.sequence: list[int] = []
        self.calls = 0

    def start(self, prompt: Sequence[int]) -> None:
        self.sequence = list(prompt)

    follow = start

    def score(self, draft: Draft) -> Scores:
        self.calls += 1
        rows = [self._logits([])]
        for node in range(len(draft)):
            path, at = [], node
            while at != ROOT:
                path.append(int(draft.tokens[at]))
                at = int(draft.parents[at])
            rows.append(self._logits(path[::-1]))
        return Scores(np.stack(rows))

    def _logits(self, path: list[int]) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.log(self.law(self.sequence + path)).astype(np.float32)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        self.sequence += [*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token]


def random_law(vocab_size: int, seed: int, *, sharpness: float = 2.0) -> Law:
    """Return a fixed random distribution for every context of the last two tokens."""

    def law(context: Sequence[int]) -> Floats:
        key = [seed, *(int(t) + 1 for t in context[-2:])]
        weights = np.exp(np.random.default_rng(key).normal(size=vocab_size) * sharpness)
        return weights / weights.sum()

    return law


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
