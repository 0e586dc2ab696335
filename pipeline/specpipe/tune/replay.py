"""Running a proposer against recorded answers: the steps of serving, without the engines."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from specpipe.assembly import make_proposer
from specpipe.contracts import (
    Draft,
    Extensions,
    Guesses,
    Ints,
    Logits,
    Proposer,
    Role,
    Runner,
    Sampling,
    Scores,
    Verdict,
)
from specpipe.methods import DraftModel, Hybrid, Speculation
from specpipe.speculate import accept
from specpipe.tune.trace import Trace


@dataclass(frozen=True)
class ReplayedStep:
    """One step that would have been taken."""

    rows: int  # the root and the draft
    depth: int  # of the draft
    emitted: int
    propose_ms: float  # the proposer's own time here; heads and draft model answer from the record
    head_calls: int = 0
    draft_calls: int = 0


class _Recorded:
    """Stands for the target's heads, or for a draft model, and answers from a trace.

    A drafter is asked for real, since its answers depend on each other; the time is not counted.
    As draft model it knows only the target's answer: after a rejected draft token, the
    rest does not matter, because it cannot be accepted.
    """

    def __init__(self, trace: Trace, target: Runner) -> None:
        self.vocab_size, self.max_seq_len = target.vocab_size, target.max_seq_len
        self._trace, self._target = trace, target
        self._sequence: list[int] = []
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.head_calls = self.draft_calls = 0
        self.waited_ms = 0.0

    def start(self, prompt: Sequence[int]) -> None:
        self._sequence = list(prompt)

    follow = start

    def prefill(self) -> bool:
        return False

    def score(self, draft: Draft) -> Scores:
        """Return what the draft model would choose next, as logits of one certain token."""
        assert self._trace.draft is not None
        self.draft_calls += 1
        at = min(len(self._sequence) - len(self._trace.prompt), len(self._trace.output))
        logits = np.zeros((1, self.vocab_size), np.float32)
        logits[0, self._trace.draft[at]] = 1.0
        return Scores(logits)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        self._sequence.append(verdict.next_token)

    def guess(self, hidden: np.ndarray) -> Guesses:  # type: ignore[type-arg]
        """Return the heads' guesses; the "hidden state" is where in the answer we are."""
        self.head_calls += 1
        return self._trace.guesses[int(hidden[0])]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Ask the drafter itself."""
        self.head_calls += 1
        began = time.perf_counter_ns()
        found = self._target.extend(hidden, states, tokens)
        self.waited_ms += (time.perf_counter_ns() - began) / 1e6
        return found


def replay(options: Speculation, trace: Trace, target: Runner) -> list[ReplayedStep]:
    """Return the steps in which greedy decoding with `options` gives the trace's answer.

    Of `target` only the sizes count, and a drafter if the method has one.

    Heads of a draft model are left out: they change how often it is called, not what it guesses, so
    the steps are right and their price is an upper bound.
    """
    if isinstance(options, DraftModel | Hybrid) and options.draft is not None:
        options = replace(options, draft=replace(options.draft, heads=None))
    recorded = _Recorded(trace, target)
    runners: Mapping[Role, Runner] = {"target": recorded, "draft": recorded}
    proposer = make_proposer(options, runners)
    proposer.start(trace.prompt, Sampling())
    return list(_steps(proposer, trace, recorded))


def _answer(trace: Trace, done: int, path: accept.Path) -> int:
    return trace.output[done + len(path)]


def _steps(proposer: Proposer, trace: Trace, recorded: _Recorded) -> Iterator[ReplayedStep]:
    done, total = 0, len(trace.output)
    while done < total:
        recorded.forget()
        began = time.perf_counter_ns()
        draft = proposer.propose(total - done - 1)
        spent = (time.perf_counter_ns() - began) / 1e6 - recorded.waited_ms
        verdict = accept.greedy(draft, partial(_answer, trace, done))
        stood = done + np.arange(len(verdict.rows))
        seen = trace.hidden[stood] if trace.hidden is not None else stood[:, None]
        where = np.zeros((1 + len(draft), seen.shape[1]), np.float32)
        where[list(verdict.rows)] = seen
        proposer.observe(draft, Scores(np.zeros((0, 0), np.float32), where), verdict)
        done += len(verdict.path) + 1
        yield ReplayedStep(
            1 + len(draft),
            draft.depth,
            len(verdict.path) + 1,
            spent,
            recorded.head_calls,
            recorded.draft_calls,
        )
