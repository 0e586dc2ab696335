"""What the target answers, recorded once; from then on any setting can be tried without it.

Greedy answers are the same whatever is drafted. So the tokens that would be
accepted follow from the answers, and from what the heads and the draft model draft at each token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specpipe.assembly import make_proposer
from specpipe.contracts import (
    Draft,
    Guesses,
    Ints,
    Logits,
    Role,
    Runner,
    Sampling,
    Scores,
    Verdict,
    chain,
    length_to_end,
)
from specpipe.methods import PromptLookup
from specpipe.speculate import accept
from specpipe.trees import WIDTH

GuesserKind = Literal["heads", "drafter"]  # in the target's own checkpoint


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt and its greedy answer; index i means: after i tokens of the answer."""

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    guesses: tuple[Guesses, ...] = ()  # of the heads, at every i
    draft: Ints | None = None  # [1 + len(output)]  the draft model's choice at every i
    hidden: Logits | None = None  # [len(output), D]  what a drafter looks at, at every i


def record(
    runners: Mapping[Role, Runner],
    prompt: Sequence[int],
    max_tokens: int,
    end_ids: Sequence[int],
    *,
    guesser: GuesserKind | None,
) -> Trace:
    """Decode `prompt` greedily and note what heads and draft model would have said.

    A drafter's tokens depend on each other, so only its inputs are recorded.

    Guesses copied from the text save steps here, and change nothing of what is recorded.
    """
    target, copies = runners["target"], make_proposer(PromptLookup("prompt_lookup"), {})
    target.start(prompt)
    copies.start(prompt, Sampling())
    output: list[int] = []
    guesses: list[Guesses] = []
    seen: list[Logits] = []
    while len(output) < max_tokens and length_to_end(output, end_ids) is None:
        draft = copies.propose(max_tokens - len(output) - 1)
        scores = target.score(draft)
        verdict = _verdict(draft, scores)
        if guesser:
            assert scores.hidden is not None
            seen.append(scores.hidden[list(verdict.rows)])
        if guesser == "heads":
            guesses += [target.guess(row) for row in seen[-1]]
        target.commit(draft, verdict)
        copies.observe(draft, scores, verdict)
        output += verdict.emitted(draft)
    output = output[: length_to_end(output, end_ids)]
    draft_says = _draft_choices(runners["draft"], prompt, output) if "draft" in runners else None
    hidden = np.concatenate(seen)[: len(output)] if guesser == "drafter" else None
    return Trace(tuple(prompt), tuple(output), tuple(guesses[: len(output)]), draft_says, hidden)


def _verdict(draft: Draft, scores: Scores) -> Verdict:
    choices = scores.logits.argmax(-1)
    return accept.greedy(draft, lambda path: int(choices[path[-1] + 1 if path else 0]))


def _draft_choices(runner: Runner, prompt: Sequence[int], output: Sequence[int]) -> Ints:
    """Read the whole answer in one call; row i is what the draft model would choose at i."""
    runner.start(prompt)
    choices: Ints = runner.score(chain(output)).logits.argmax(-1).astype(np.int64)
    return choices


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
