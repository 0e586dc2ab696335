"""How deep to guess, and when not to: wrappers of any proposer that only lower its limit.

A limit may follow from what was committed, from past acceptance, from the load, or from a draft's
distribution before a token is drawn from it. It may never follow from a drawn token: keeping only
the likely guesses is biased, since the rule of acceptance takes them for draws from q.
"""

from collections.abc import Callable, Sequence

from specpipe.contracts import EMPTY, Draft, Proposer, Sampling, Scores, Verdict


def next_length(length: int, draft: Draft, verdict: Verdict, most: int) -> int:
    """Return how deep to guess after a draft: two more if all of it was accepted, else one less.

    From 1 to `most`; the "heuristic" schedule of transformers' assisted generation. A step without
    a draft teaches nothing.
    """
    if draft.depth == 0:
        return length
    step = 2 if len(verdict.path) == draft.depth else -1
    return min(most, max(1, length + step))


class AdaptiveLength:
    """Lets a proposer guess as deep as its last drafts were worth it."""

    def __init__(self, inner: Proposer, most: int) -> None:
        self.draft_nodes = inner.draft_nodes
        self._inner, self._most, self._length = inner, most, most
        self._last = EMPTY

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Begin with the longest drafts again."""
        self._length, self._last = self._most, EMPTY
        self._inner.start(prompt, sampling)

    def propose(self, limit: int) -> Draft:
        """Guess at most the present length deep."""
        self._last = self._inner.propose(min(limit, self._length))
        return self._last

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Adapt the length, unless the draft was another's."""
        if draft is self._last:
            self._length = next_length(self._length, draft, verdict, self._most)
        self._inner.observe(draft, scores, verdict)


class QuietWhenBusy:
    """Guesses nothing while more than `most` sequences run: their tokens fill the step already.

    TensorRT-LLM's `max_concurrency`. `running()` counts the sequences, this one included.
    """

    def __init__(self, inner: Proposer, most: int, running: Callable[[], int]) -> None:
        self.draft_nodes = inner.draft_nodes
        self._inner, self._most, self._running = inner, most, running

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start the proposer; the load may fall while the answer grows."""
        self._inner.start(prompt, sampling)

    def propose(self, limit: int) -> Draft:
        """Guess, if there is room for it now."""
        return self._inner.propose(limit) if self._running() <= self._most else EMPTY

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Pass on what was committed."""
        self._inner.observe(draft, scores, verdict)
