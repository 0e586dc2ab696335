"""Fakes with fixed answers: models that compute logits from a distribution, and a driver.

`run` answers the asks of one algorithm at once and holds no state between them.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from specpipe.core.contracts import (
    ROOT,
    Allowance,
    Answer,
    Ask,
    Asking,
    Draft,
    Extensions,
    Floats,
    Guess,
    Guesses,
    Ints,
    Logits,
    Predict,
    Role,
    Sampling,
    Score,
    Scores,
    Verdict,
    chain,
    without_asking,
)
from specpipe.speculate.decode import ContextLogits, Decoding, Step

T = TypeVar("T")
Distribution = Callable[[Sequence[int]], Floats]  # the tokens so far -> distribution of the next
Allow = Callable[[int], int]  # the limit of an `Allowance` -> its answer
Cut = Callable[[Score], Ints | None]  # the nodes of a target's draft to score; None: all

HEADS = 8


class Model(Protocol):
    """Answers the asks for one engine."""

    def score(self, tokens: Sequence[int], draft: Draft) -> Scores: ...
    def guess(self, hidden: Logits) -> Guesses: ...
    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions: ...
    def predict(self, ask: Predict) -> Extensions: ...


@dataclass
class ScriptedModel:
    """Computes logits from a distribution, and the predictions of its heads from another.

    The hidden state of a token is the token and the one before it.
    """

    distribution: Distribution
    heads: Distribution | None = None  # None: `distribution`
    calls: int = 0  # of `score`

    def score(self, tokens: Sequence[int], draft: Draft) -> Scores:
        """Return logits and hidden states of the root and the draft."""
        self.calls += 1
        paths = paths_of(draft.tokens, draft.parents)
        return self.rows([[*tokens, *path] for path in ([], *paths)])

    def rows(self, sequences: Sequence[Sequence[int]]) -> Scores:
        """Return the logits and the hidden state after each of some sequences."""
        hidden = [[0, *sequence][-2:] for sequence in sequences]
        with np.errstate(divide="ignore"):
            logits = np.log(np.stack([self.distribution(sequence) for sequence in sequences]))
        return Scores(logits.astype(np.float32), np.array(hidden, np.float32))

    def guess(self, hidden: Logits) -> Guesses:
        """Return predictions of heads; each follows the best prediction of the one before."""
        context = [int(token) for token in hidden]
        tokens, probs = [], []
        for _ in range(1 + HEADS):
            distribution = self._heads(context)
            tokens.append(np.argsort(-distribution, kind="stable"))
            probs.append(distribution[tokens[-1]])
            context.append(int(tokens[-1][0]))
        return Guesses(np.stack(tokens)[1:], np.stack(probs)[1:])

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Extend paths; `hidden` is [D] or [B, D]; a state is 1 and the path's last token."""
        last = np.broadcast_to(hidden, states.shape)[:, -1]
        before = np.where(states[:, 0] > 0, states[:, 1], last).astype(int)
        distributions = np.stack(
            [self._heads([int(a), int(b)]) for a, b in zip(before, tokens, strict=True)]
        )
        best = np.argsort(-distributions, axis=1, kind="stable")
        after = np.stack([np.ones_like(tokens), tokens], 1).astype(np.float32)
        return Extensions(best, np.take_along_axis(distributions, best, 1), after)

    def predict(self, ask: Predict) -> Extensions:
        """Predict after nodes of a draft; a state is a path's length and its last token."""
        paths = [[ask.tokens[-1], *path] for path in paths_of(ask.draft.tokens, ask.draft.parents)]
        for path, state in zip(paths, ask.states, strict=True):
            assert state.tolist() == [len(path) - 1, path[-2]], "a node has another parent's state"
        wanted = [paths[n] if n != ROOT else [ask.tokens[-1]] for n in ask.wanted.tolist()]
        contexts = [[ask.tokens[-2], *path] for path in wanted]
        distributions = np.stack([self._heads(context) for context in contexts])
        best = np.argsort(-distributions, axis=1, kind="stable")
        states = np.array([[len(path), path[-1]] for path in wanted], np.float32)
        return Extensions(best, np.take_along_axis(distributions, best, 1), states)

    @property
    def _heads(self) -> Distribution:
        return self.heads or self.distribution


def paths_of(tokens: Ints, parents: Ints) -> list[list[int]]:
    """Return the tokens from below the root to each node."""
    paths: list[list[int]] = []
    for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True):
        paths.append([*(paths[parent] if parent != ROOT else ()), token])
    return paths


# --- the driver ---------------------------------------------------------------------------------


def whole_limit(limit: int) -> int:
    """Allow what is asked for."""
    return limit


def no_cut(ask: Score) -> Ints | None:
    """Score all nodes."""
    return None


def answer(
    ask: Ask, models: Mapping[Role, Model], allow: Allow = whole_limit, cut: Cut = no_cut
) -> Answer:
    """Answer one ask; nothing is remembered from one to the next."""
    if isinstance(ask, Allowance):
        return allow(ask.limit)
    model = models[ask.role]
    if isinstance(ask, Guess):
        return model.guess(ask.hidden)
    if isinstance(ask, Score):
        nodes = cut(ask) if ask.role == "target" else None
        scores = model.score(ask.tokens, ask.draft)
        return scores if nodes is None else _rows_of(scores, nodes)
    if isinstance(ask, Predict):
        return model.predict(ask)
    return model.extend(ask.hidden, ask.states, ask.tokens)


def _rows_of(scores: Scores, nodes: Ints) -> Scores:
    """Return the rows of the root and of some nodes."""
    assert scores.hidden is not None
    rows = np.concatenate([[0], nodes + 1])
    return Scores(scores.logits[rows], scores.hidden[rows], nodes)


def events(
    decoding: Decoding,
    models: Mapping[Role, Model],
    allow: Allow = whole_limit,
    cut: Cut = no_cut,
) -> Iterator[Step | ContextLogits]:
    """Yield the events of an algorithm."""
    reply: Answer | None = None
    while True:
        try:
            found = decoding.send(reply)
        except StopIteration:
            return
        reply = None
        if isinstance(found, Step | ContextLogits):
            yield found
        else:
            reply = answer(found, models, allow, cut)


def run(
    decoding: Decoding,
    models: Mapping[Role, Model],
    allow: Allow = whole_limit,
    cut: Cut = no_cut,
) -> list[Step]:
    """Return the steps of an algorithm."""
    return [step for step in events(decoding, models, allow, cut) if isinstance(step, Step)]


def proposed(asking: Asking[T], models: Mapping[Role, Model] | None = None) -> T:
    """Return what a generator returns once its asks are answered, such as a draft."""
    reply: Answer | None = None
    while True:
        try:
            ask = asking.send(reply)  # type: ignore[arg-type]
        except StopIteration as stop:
            value: T = stop.value
            return value
        reply = answer(ask, models or {})


# --- distributions and proposers ------------------------------------------------------------


def random_distribution(vocab_size: int, seed: int, *, sharpness: float = 2.0) -> Distribution:
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

    def propose(self, limit: int) -> Asking[Draft]:
        return without_asking(self._guess(self.tokens, min(limit, self.draft_nodes)))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        self.tokens += verdict.emitted(draft)


def always(token: int) -> Callable[[list[int], int], Draft]:
    """Guess the same token again and again."""
    return lambda tokens, limit: chain([token] * max(0, limit))
