"""The decoding loop of one sequence: propose, score, accept, commit.

It is a generator that yields after every call of an engine: an event for each chunk of a long
prompt, then the tokens of every step. A caller with several sequences resumes one generator at a
time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from specpipe.contracts import Draft, Floats, Logits, Proposer, Runner, Sampling, Scores, Verdict
from specpipe.speculate import accept
from specpipe.speculate.history import Completions, History
from specpipe.speculate.sampling import Adjustment, distribution, log_probability

Finish = Literal["end_id", "stop_words", "length"]


@dataclass(frozen=True)
class Limits:
    """When a sequence ends."""

    max_tokens: int
    stop_words: tuple[tuple[int, ...], ...] = ()  # kept in the output, as in TensorRT-LLM


@dataclass(frozen=True)
class Step:
    """One target forward pass: the tokens that it emitted, and draft and accepted counts."""

    tokens: tuple[int, ...]
    drafted: int  # depth of the draft: siblings compete for one position
    accepted: int  # draft tokens among `tokens`; at most `drafted`
    finish: Finish | None = None
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Prefilled:
    """One call of an engine that ran a chunk of the prompt; nothing was emitted."""

    logits: Logits | None = field(
        default=None, compare=False
    )  # [n, V] after its tokens, if requested


@dataclass
class _Sequence:
    """The tokens so far, the start of the output, and the stop words."""

    tokens: History
    stop_words: Completions
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length


def decode(
    runner: Runner,
    proposer: Proposer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    rule: accept.Rule | None = None,
    *,
    log_probs: bool = False,
) -> Iterator[Step]:
    """Yield steps until an end token, a stop word or `limits.max_tokens`.

    The caller may stop at any step. See `decode_events`.
    """
    events = decode_events(runner, proposer, prompt, sampling, limits, rule, log_probs=log_probs)
    return only_steps(events)


def only_steps(events: Iterable[Step | Prefilled]) -> Iterator[Step]:
    """Yield the steps among the events of a sequence."""
    return (event for event in events if isinstance(event, Step))


def decode_events(
    runner: Runner,
    proposer: Proposer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    rule: accept.Rule | None = None,
    *,
    log_probs: bool = False,
    readers: Sequence[Runner] = (),
) -> Iterator[Step | Prefilled]:
    """Yield an event for every chunk of the prompt but the last, then steps like `decode`.

    The output equals that of plain decoding with the same options. Greedy output is equal token for
    token. Sampled output has the same distribution with the default rule, `accept.sample`; another
    `rule` may change it. An end token is emitted as the last token. `readers` are the runners of
    the proposer that also prefill the prompt. The caller may stop at any event.
    """
    rng = np.random.default_rng(sampling.seed)
    sequence = _Sequence(History(prompt), Completions(limits.stop_words))
    adjustment = Adjustment(sampling)
    runner.start(prompt)
    proposer.start(prompt, sampling)
    for reader in (runner, *readers):
        while reader.prefill():
            yield Prefilled()
    while True:
        left = limits.max_tokens - sequence.generated
        draft = proposer.propose(left - 1)
        scores = runner.score(draft)
        verdict = _judge(draft, scores, sequence, adjustment, rule or accept.sample, rng)
        step = _step(draft, scores, verdict, sequence, sampling, limits, log_probs)
        if step.finish:
            yield step
            return
        runner.commit(draft, verdict)
        proposer.observe(draft, scores, verdict)
        sequence.tokens.extend(step.tokens)
        yield step


def _judge(
    draft: Draft,
    scores: Scores,
    sequence: _Sequence,
    adjustment: Adjustment,
    rule: accept.Rule,
    rng: np.random.Generator,
) -> Verdict:
    def logits(path: accept.Path) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        row = path[-1] + 1 if path else 0
        history = sequence.tokens + [int(draft.tokens[n]) for n in path]
        return adjustment(scores.logits[row], history, sequence.generated + len(path))

    def law(path: accept.Path) -> Floats:
        return distribution(logits(path), adjustment.options)

    if adjustment.options.greedy:
        return accept.greedy(draft, lambda path: int(np.argmax(logits(path))))
    return rule(draft, law, rng)


def _step(
    draft: Draft,
    scores: Scores,
    verdict: Verdict,
    sequence: _Sequence,
    sampling: Sampling,
    limits: Limits,
    log_probs: bool,
) -> Step:
    emitted = verdict.emitted(draft)
    kept, finish = _cut(emitted, sequence, sampling, limits)
    return Step(
        tokens=tuple(kept),
        drafted=draft.depth,
        accepted=min(len(kept), len(verdict.path)),
        finish=finish,
        log_probs=tuple(
            log_probability(scores.logits[row], token)
            for row, token in zip(verdict.rows, kept, strict=False)
        )
        if log_probs
        else (),
    )


def _cut(
    emitted: list[int], sequence: _Sequence, sampling: Sampling, limits: Limits
) -> tuple[list[int], Finish | None]:
    """Cut the tokens of one step at the first reason to stop; stop words must be in the output."""
    for i, token in enumerate(emitted):
        if token in sampling.end_ids:
            return emitted[: i + 1], "end_id"
        before, generated = sequence.tokens + emitted[:i], sequence.generated + i
        if any(token in ends for ends in sequence.stop_words.after(before, within=generated)):
            return emitted[: i + 1], "stop_words"
        if generated + 1 >= limits.max_tokens:
            return emitted[: i + 1], "length"
    return emitted, None
