"""Times whole rounds of the batcher by their rows: what a step costs where it is served.

A step costs more than the engine's call for its rows. The budget chooses nodes, the rows are laid
out, a tree needs a mask, the answer is verified, accepted rows move, and a call of other rows than
the one before makes the kernels prepare themselves again. Drafters run between two calls of the
target, whose weights they displace from the caches. So the rounds of serving are timed: streams
decode recorded answers with `speculate.decode`, drafts are of scripted sizes, and drafters are
called or not. A difference of medians is the price of what differs.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import (
    EMPTY,
    Asking,
    Draft,
    Logits,
    Sampling,
    Scores,
    Verdict,
    chain,
)
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.batcher import Batcher
from specpipe.runtime.budget import Budget
from specpipe.speculate.decode import Limits, decode
from specpipe.speculate.medusa import hidden_of_last
from specpipe.tune.trace import Trace

BLOCK_ROUNDS = 4  # of the same size, after one that changes the size
MOST_ROUNDS = 20  # before the streams start again, so that texts have lengths of answers
RIGHT = 2  # draft tokens that follow the recorded answer, and are accepted


@dataclass(frozen=True)
class Size:
    """What one round has: draft tokens of each stream, their shape, and calls of its drafter."""

    nodes: int
    branched: bool = False
    calls: int = 0


@dataclass
class Samples:
    """Milliseconds of rounds of one size."""

    same: list[float] = field(default_factory=list)  # after a round of the same size
    changed: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of those after a round of the same size, if there are any."""
        return statistics.median(self.same or self.changed)


# Tokens of the sequence, hidden state before its last one, calls.
Drafting = Callable[[Sequence[int], Logits, int], Asking[None]]


@dataclass
class Script:
    """The size of the current round, which all streams follow."""

    size: Size = Size(0)


@dataclass
class ScriptedProposer:
    """Drafts the recorded answer and other tokens, in the scripted shape."""

    script: Script
    trace: Trace
    vocab_size: int
    drafting: Drafting | None
    draft_nodes: int
    tokens: list[int] = field(default_factory=list)
    seen: tuple[Scores, Verdict] | None = None

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Begin a new sequence."""
        self.tokens = list(prompt)

    def propose(self, limit: int) -> Asking[Draft]:
        """Call the drafter as often as scripted, and return a draft of the scripted size."""
        size = self.script.size
        if size.calls and self.drafting is not None and self.seen is not None:
            yield from self.drafting(self.tokens, hidden_of_last(*self.seen), size.calls)
        done = len(self.tokens) - len(self.trace.prompt)
        return scripted_draft(self.trace.output[done:], size, self.vocab_size)

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append the committed tokens."""
        self.tokens += verdict.emitted(draft)
        self.seen = scores, verdict


def scripted_draft(coming: Sequence[int], size: Size, vocab_size: int) -> Draft:
    """Return a draft of `size.nodes` tokens, of which a path follows the `coming` tokens.

    A tree has two children at every node, and the recorded tokens down its first children.
    """
    if not size.nodes:
        return EMPTY
    first = coming[0] if len(coming) else 0
    nodes = np.arange(size.nodes)
    tokens = (first + 1 + nodes) % vocab_size
    at = 0
    for token in coming[:RIGHT]:
        if at < size.nodes:
            tokens[at] = token
        at = 2 * at + 2 if size.branched else at + 1
    return Draft(tokens, nodes // 2 - 1) if size.branched else chain(tokens)


def time_rounds(
    deployment: Runtime,
    traces: Sequence[Trace],
    sizes: Sequence[Size],
    *,
    streams: int,
    turns: int,
    drafting: Drafting | None = None,
) -> dict[Size, Samples]:
    """Time rounds of all `sizes`, which take turns, with `streams` sequences in a batch."""
    found = {size: Samples() for size in sizes}
    plan = [*_plan(sizes, turns)]
    turn = 0
    while plan:
        script = Script()
        batcher, rounds = _batcher(deployment, traces, script, sizes, streams, turn, drafting)
        before: Size | None = None
        for _ in range(max(1, rounds // (1 + BLOCK_ROUNDS))):
            if plan:
                script.size = plan.pop()
                _time_block(batcher, found[script.size], streams, again=script.size == before)
                before = script.size
        for stream in list(batcher.streams):
            batcher.remove(stream)
        turn += streams
    return found


def _time_block(batcher: Batcher, samples: Samples, streams: int, *, again: bool) -> None:
    """Time rounds of one size, while all streams decode."""
    for number in range(1 + BLOCK_ROUNDS):
        if len(batcher.streams) < streams:
            return
        ms = _timed_ms(batcher)
        (samples.same if again or number else samples.changed).append(ms)


def _plan(sizes: Sequence[Size], turns: int) -> Iterator[Size]:
    """Yield every size once a turn, in an order that changes."""
    order = np.random.default_rng(0)
    for _ in range(turns):
        for number in order.permutation(len(sizes)).tolist():
            yield sizes[number]


def _batcher(
    deployment: Runtime,
    traces: Sequence[Trace],
    script: Script,
    sizes: Sequence[Size],
    streams: int,
    first: int,
    drafting: Drafting | None,
) -> tuple[Batcher, int]:
    """Return a batcher whose streams have read their prompts, and for how many rounds."""
    batcher, used = deployment.batcher(Budget()), list[Trace]()
    facts, most = deployment.facts["target"], max(size.nodes for size in sizes)
    for number in range(streams):
        used.append(traces[(first + number) % len(traces)])
        proposer = ScriptedProposer(script, used[-1], facts.vocab_size, drafting, max(1, most))
        room = facts.max_seq_len - len(used[-1].prompt)
        limits = Limits(max(1, min(room, (1 + RIGHT) * MOST_ROUNDS + most + 2)))
        batcher.add(decode(proposer, used[-1].prompt, Sampling(), limits), adaptive=False)
    while batcher.streams and not all(stream.decodes for stream in batcher.streams):
        batcher.round()
    room = facts.max_seq_len - max(len(trace.prompt) for trace in used) - most - 2
    return batcher, min(MOST_ROUNDS, room // (1 + RIGHT))


def _timed_ms(batcher: Batcher) -> float:
    began = time.perf_counter_ns()
    events = batcher.round()
    took_ms = (time.perf_counter_ns() - began) / 1e6
    for _, event in events:
        if isinstance(event, Exception):
            raise event
    return took_ms
