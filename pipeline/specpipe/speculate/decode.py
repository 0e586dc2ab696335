"""The decoding loop of one sequence: propose, score, accept, emit.

It is a generator. It yields what it needs from an engine (an `Ask`) and is resumed with the answer,
and it yields a `Step` with the tokens of every forward pass of the target. It holds no engine, so
the same loop is decoded by itself, in a batch, in a replay, and in a test.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from specpipe.core.contracts import (
    EMPTY,
    Answer,
    Ask,
    Asking,
    Draft,
    Floats,
    Logits,
    Proposer,
    Sampling,
    Scores,
    Verdict,
    allowance,
    chain,
    score,
)
from specpipe.speculate import accept
from specpipe.speculate.constrained import Constraint, guided, permitted, permitted_part
from specpipe.speculate.drawing import draw_token
from specpipe.speculate.history import Completions, History
from specpipe.speculate.sampling import (
    Adjustment,
    distribution,
    log_probability,
    top_log_probabilities,
)

# grammar: the answer is complete and could only end. Without an end token, unlike end_id.
Finish = Literal["end_id", "stop_words", "grammar", "length"]


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
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()  # likeliest tokens at each position


@dataclass(frozen=True)
class ContextLogits:
    """The target's logits after the next tokens of a prompt; nothing was emitted."""

    logits: Logits  # [n, V]


# Yields asks and events; is resumed with the answer to an ask, and with None after an event.
Decoding = Generator[Ask | Step | ContextLogits, Answer | None, None]
CONTEXT_BLOCK = 64  # prompt tokens per call, if their logits are requested


@dataclass
class _Sequence:
    """The tokens so far, the start of the output, and what ends or constrains it."""

    tokens: History
    stop_words: Completions
    constraint: Constraint | None = None
    prompt_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    def commit(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)
        if self.constraint is not None:
            self.constraint.commit(tokens)


def decode(
    proposer: Proposer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    rule: accept.Rule | None = None,
    *,
    log_probs: bool = False,
    tops: int = 0,
    constraint: Constraint | None = None,
) -> Decoding:
    """Yield asks and steps until an end token, a stop word or `limits.max_tokens`.

    The output equals that of plain decoding with the same options. Greedy output is equal token for
    token. Sampled output has the same distribution with the default rule, `accept.sample`; another
    `rule` may change it. An end token is emitted as the last token. Under a `constraint` every
    position is masked, and the output ends where the grammar ends. Steps have the model's own
    `log_probs` of their tokens and of the `tops` likeliest ones, if requested. The caller may close
    the generator at any time.
    """
    rng = np.random.default_rng(sampling.seed)
    sequence = _Sequence(History(prompt), Completions(limits.stop_words), constraint)
    adjustment = Adjustment(sampling)
    proposer.start(prompt, sampling)
    while True:
        draft = yield from _propose(proposer, sequence, limits)
        scores = yield from score("target", sequence.tokens, draft)
        draft = draft if scores.kept is None else draft.only(scores.kept)
        verdict = _judge(draft, scores, sequence, adjustment, rule, rng)
        step = _step(draft, scores, verdict, sequence, sampling, limits, log_probs, tops)
        if step.finish:
            yield step
            return
        proposer.observe(draft, scores, verdict)
        del scores  # so that the engine can write the next ones into the same memory
        sequence.commit(step.tokens)
        yield step


def _propose(proposer: Proposer, sequence: _Sequence, limits: Limits) -> Asking[Draft]:
    """Draft within what is left of the output, and within the grammar where that is cheap."""
    asking = propose_within(proposer, limits.max_tokens - sequence.generated - 1)
    if sequence.constraint is None:
        return (yield from asking)
    draft = yield from guided(asking, sequence.constraint, len(sequence.tokens))
    return permitted_part(draft, sequence.constraint)


def propose_within(proposer: Proposer, left: int) -> Asking[Draft]:
    """Draft as deep as the driver allows, and at most `left` tokens."""
    if left <= 0 or not proposer.draft_nodes:
        return EMPTY
    limit = yield from allowance(min(left, proposer.draft_nodes))
    return (yield from proposer.propose(limit)) if limit > 0 else EMPTY


def read_context(prompt: Sequence[int]) -> Decoding:
    """Yield the logits after the tokens of `prompt`, in order, CONTEXT_BLOCK tokens at a time."""
    for begin in range(0, len(prompt), CONTEXT_BLOCK):
        rest = chain(prompt[begin + 1 : begin + CONTEXT_BLOCK])
        scores = yield from score("target", prompt[: begin + 1], rest, whole=True)
        yield ContextLogits(scores.logits)


def _judge(
    draft: Draft,
    scores: Scores,
    sequence: _Sequence,
    adjustment: Adjustment,
    rule: accept.Rule | None,
    rng: np.random.Generator,
) -> Verdict:
    def logits(path: accept.Path) -> Logits:
        row = path[-1] + 1 if path else 0
        tokens = [int(draft.tokens[n]) for n in path]
        history = sequence.tokens + tokens
        adjusted = adjustment(scores.logits[row], history, sequence.generated + len(path))
        constraint = sequence.constraint
        return adjusted if constraint is None else permitted(adjusted, constraint.mask(tokens))

    def target(path: accept.Path) -> Floats:
        return distribution(logits(path), adjustment.options)

    options = adjustment.options
    if options.greedy or (rule is None and draft.probs is None):
        return accept.greedy(draft, lambda path: draw_token(logits(path), options, rng))
    return (rule or accept.sample)(draft, target, rng)


def _step(
    draft: Draft,
    scores: Scores,
    verdict: Verdict,
    sequence: _Sequence,
    sampling: Sampling,
    limits: Limits,
    log_probs: bool,
    tops: int,
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
        tops=tuple(
            top_log_probabilities(scores.logits[row], tops)
            for row, _ in zip(verdict.rows, kept, strict=False)
        )
        if tops
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
        if sequence.constraint is not None and sequence.constraint.is_complete(emitted[: i + 1]):
            return emitted[: i + 1], "grammar"
        if generated + 1 >= limits.max_tokens:
            return emitted[: i + 1], "length"
    return emitted, None
