"""The length of drafts: wrappers that lower the limit of any proposer.

A limit may depend on committed tokens, past acceptance, the load, or a draft's distribution before
a token is drawn from it. It must never depend on a drawn token. Keeping only likely draft tokens
would bias the output, since the acceptance rule assumes that they are draws from q.
"""

from collections.abc import Callable, Sequence

from specpipe.contracts import EMPTY, Draft, Proposer, Sampling, Scores, Verdict


def next_length(length: int, draft: Draft, verdict: Verdict, most: int) -> int:
    """Return the next draft length: two more if the whole draft was accepted, else one less.

    The length stays between 1 and `most`. This is the "heuristic" schedule of transformers'
    assisted generation. A step without a draft does not change the length.
    """
    if draft.depth == 0:
        return length
    step = 2 if len(verdict.path) == draft.depth else -1
    return min(most, max(1, length + step))


class AdaptiveLength:
    """Adapts the draft length of a proposer to the acceptance of its last drafts."""

    def __init__(self, inner: Proposer, most: int) -> None:
        self.draft_nodes = inner.draft_nodes
        self._inner, self._most, self._length = inner, most, most
        self._last = EMPTY

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a sequence with the longest drafts."""
        self._length, self._last = self._most, EMPTY
        self._inner.start(prompt, sampling)

    def propose(self, limit: int) -> Draft:
        """Draft at most as deep as the current length."""
        self._last = self._inner.propose(min(limit, self._length))
        return self._last

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Adapt the length, unless another proposer made the draft."""
        if draft is self._last:
            self._length = next_length(self._length, draft, verdict, self._most)
        self._inner.observe(draft, scores, verdict)


class QuietWhenBusy:
    """Drafts nothing while more than `most` sequences run: their tokens already fill the step.

    The same as TensorRT-LLM's `max_concurrency`. `running()` counts the sequences, including this
    one.
    """

    def __init__(self, inner: Proposer, most: int, running: Callable[[], int]) -> None:
        self.draft_nodes = inner.draft_nodes
        self._inner, self._most, self._running = inner, most, running

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start the proposer even when busy: the load can fall later."""
        self._inner.start(prompt, sampling)

    def propose(self, limit: int) -> Draft:
        """Draft, unless too many sequences run."""
        return self._inner.propose(limit) if self._running() <= self._most else EMPTY

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Pass on what was committed."""
        self._inner.observe(draft, scores, verdict)
