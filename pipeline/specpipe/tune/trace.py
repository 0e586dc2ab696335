"""Records the target's answers once, so that any setting can be tried without it.

Greedy answers are the same whatever is drafted. So the tokens that would be
accepted follow from the answers, and from what the heads and the draft model draft at each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from specpipe.config.speculation import PromptLookup
from specpipe.core.contracts import (
    EMPTY,
    Asking,
    Draft,
    Guesses,
    Ints,
    Logits,
    Proposer,
    Sampling,
    Scores,
    Verdict,
    chain,
    guess,
    length_to_end,
    score,
)
from specpipe.core.trees import WIDTH
from specpipe.runtime.assembly import Runtime, make_proposer
from specpipe.runtime.budget import Budget
from specpipe.runtime.stream import Stream
from specpipe.speculate import accept
from specpipe.speculate.decode import CONTEXT_BLOCK, Decoding, Step, propose_within
from specpipe.tune.growth import Grown, grow_all

DrafterKind = Literal["heads", "redrafter", "eagle3"]  # in the target's own checkpoint


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt and its greedy answer; index i means: after i tokens of the answer."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    guesses: tuple[Guesses, ...] = ()  # of the heads, at every i
    draft: Ints | None = None  # [1 + len(output)]  the draft model's choice at every i
    hidden: Logits | None = None  # [len(output), D]  what a drafter looks at, at every i

    grown: tuple[Grown, ...] = ()  # [len(output) - 1]  what an EAGLE-3 drafter predicts, at every i

    def begins_with(self, tokens: Sequence[int]) -> bool:
        """Tell whether prompt and answer begin with `tokens`, which contain the prompt."""
        whole = (*self.prompt, *self.output)
        return len(tokens) >= len(self.prompt) and whole[: len(tokens)] == tuple(tokens)


@dataclass
class _Recording:
    """Decodes one prompt and notes what its heads and its draft model predict."""

    prompt: Sequence[int]
    max_tokens: int
    end_ids: Sequence[int]
    drafter: DrafterKind | None
    has_draft: bool
    output: list[int] = field(default_factory=list)
    guesses: list[Guesses] = field(default_factory=list)
    seen: list[Logits] = field(default_factory=list)
    choices: Ints | None = None
    grown: list[Grown] = field(default_factory=list)

    def run(self) -> Decoding:
        """Yield asks, and steps of which the last one ends the answer."""
        copies = make_proposer(PromptLookup("prompt_lookup"), {})
        copies.start(self.prompt, Sampling())
        while not self._ended:
            draft = yield from self._draft(copies)
            scores = yield from score("target", [*self.prompt, *self.output], draft)
            draft = draft if scores.kept is None else draft.only(scores.kept)
            verdict = _verdict(draft, scores)
            if self.drafter in ("heads", "redrafter"):
                yield from self._note(scores, verdict)
            copies.observe(draft, scores, verdict)
            self.output += verdict.emitted(draft)
            yield Step(tuple(verdict.emitted(draft)), draft.depth, len(verdict.path))
        del self.output[length_to_end(self.output, self.end_ids) or self.max_tokens :]
        if self.has_draft:
            self.choices = yield from _draft_choices(self.prompt, self.output)
        yield Step((), 0, 0, "length")

    def _draft(self, copies: Proposer) -> Asking[Draft]:
        """Copy from the text; for an EAGLE-3 drafter, note what it predicts at every token."""
        if self.drafter != "eagle3":
            left = self.max_tokens - len(self.output) - 1
            return (yield from propose_within(copies, left))
        if self.output:
            self.grown.append((yield from grow_all([*self.prompt, *self.output])))
        return EMPTY

    @property
    def _ended(self) -> bool:
        return (
            len(self.output) >= self.max_tokens
            or length_to_end(self.output, self.end_ids) is not None
        )

    def _note(self, scores: Scores, verdict: Verdict) -> Asking[None]:
        assert scores.hidden is not None
        self.seen.append(scores.hidden[list(verdict.rows)])
        for row in self.seen[-1] if self.drafter == "heads" else ():
            self.guesses.append((yield from guess("target", row)))

    @property
    def trace(self) -> Trace:
        """Return the record; `run` must have ended."""
        count = len(self.output)
        hidden = np.concatenate(self.seen)[:count] if self.drafter == "redrafter" else None
        return Trace(
            tuple(self.prompt),
            tuple(self.output),
            tuple(self.guesses[:count]),
            self.choices,
            hidden,
            tuple(self.grown[:count]),
        )


def record(
    deployment: Runtime,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    end_ids: Sequence[int],
    *,
    drafter: DrafterKind | None,
    budget: Budget | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Trace]:
    """Decode all `prompts` greedily in one batch; note what heads and draft model predict.

    A drafter's tokens depend on each other, so only its inputs are recorded. Drafts copied from the
    text save steps here, and change nothing of what is recorded. Raises what the engines raise.
    """
    batcher, draft = deployment.batcher(budget), "draft" in deployment.engines
    recordings = [_Recording(p, max_tokens, end_ids, drafter, draft) for p in prompts]
    live: list[Stream] = [batcher.add(recording.run()) for recording in recordings]
    try:
        while batcher.streams:
            for _, event in batcher.round():
                if isinstance(event, Exception):
                    raise event
            progress(len(live) - len(batcher.streams), len(live))
    finally:
        for stream in live:
            batcher.remove(stream)
    return [recording.trace for recording in recordings]


def _verdict(draft: Draft, scores: Scores) -> Verdict:
    choices = scores.logits.argmax(-1)
    return accept.greedy(draft, lambda path: int(choices[path[-1] + 1 if path else 0]))


def _draft_choices(prompt: Sequence[int], output: Sequence[int]) -> Asking[Ints]:
    """Read the whole answer; element i is what the draft model would choose after i tokens."""
    choices = list[Ints]()
    for begin in range(0, len(output) + 1, CONTEXT_BLOCK):
        rest = chain(output[begin : begin + CONTEXT_BLOCK - 1])
        scores = yield from score("draft", [*prompt, *output[:begin]], rest, whole=True)
        choices.append(scores.logits.argmax(-1).astype(np.int64))
    return np.concatenate(choices)


def head_accuracy(traces: Sequence[Trace]) -> list[list[float]]:
    """Return [heads, WIDTH]: how often the token of each rank was right, if a path led to it.

    A path leads to head k where each head before it had the right token among its draft tokens.
    """
    heads = max((len(g.tokens) for t in traces for g in t.guesses), default=0)
    hits, reached = np.zeros((heads, WIDTH)), np.zeros(heads)
    for trace in traces:
        for i, guesses in enumerate(trace.guesses):
            # After i tokens the root is the one at i; the first head drafts the next one.
            for head in range(min(heads, len(trace.output) - i - 1)):
                reached[head] += 1
                right = np.flatnonzero(guesses.tokens[head] == trace.output[i + 1 + head])
                if not len(right):
                    break
                hits[head, right[0]] += 1
    rates: list[list[float]] = (hits / np.maximum(reached, 1)[:, None]).tolist()
    return rates
