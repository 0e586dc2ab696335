"""Drafting with a small model, token by token (Leviathan 2211.17192; Chen 2302.01318)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specpipe.config.speculation import DraftModel, Hybrid
from specpipe.core.contracts import (
    Asking,
    Draft,
    Floats,
    Logits,
    Proposer,
    Role,
    Sampling,
    Scores,
    Verdict,
    chain,
    score,
)
from specpipe.core.engines import EngineFacts
from specpipe.speculate import accept
from specpipe.speculate.history import History
from specpipe.speculate.medusa import MedusaProposer
from specpipe.speculate.none import NoProposer
from specpipe.speculate.sampling import Adjustment, distribution, log_probability


@dataclass(frozen=True)
class _Place:
    """One position of the draft: the draft model's prediction of the next token."""

    logits: Logits  # [V], adjusted
    sampling: Sampling

    @cached_property
    def probs(self) -> Floats:
        """The distribution [V] that draft tokens are drawn from."""
        return distribution(self.logits, self.sampling)

    @property
    def confidence(self) -> float:
        """The largest probability; for greedy sampling that of the model's own distribution."""
        if self.sampling.greedy:
            return math.exp(log_probability(self.logits, int(np.argmax(self.logits))))
        return float(self.probs.max())


class DraftModelProposer:
    """Drafts with a second engine, with the sampling options of the request.

    Every call of the draft model names the whole sequence, so its cache follows the committed
    tokens. The draft model may itself decode speculatively. That changes the number of its calls,
    not the distribution of its draft tokens.
    """

    def __init__(
        self,
        max_seq_len: int,
        num_draft_tokens: int,
        min_confidence: float = 0.0,
        inner: Proposer | None = None,
    ) -> None:
        """Draft up to `num_draft_tokens` tokens, in sequences of at most `max_seq_len`.

        The draft ends where the confidence is below `min_confidence` (0: never). `inner` is the
        proposer of the draft model's own speculative decoding.
        """
        self.draft_nodes = num_draft_tokens
        self._min_confidence = min_confidence
        self._max_seq_len, self._inner = max_seq_len, inner or NoProposer()
        self._sampling = Sampling()
        self._rng = np.random.default_rng(0)
        self._adjustment = Adjustment(self._sampling)
        self._tokens: list[int] = []
        self._history = History()
        self._prompt_length = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Start a new sequence."""
        self._sampling = sampling
        # Drafting must be independent of the verifier's draws: a child of the same seed.
        self._rng = np.random.default_rng([sampling.seed, 1])
        self._adjustment = Adjustment(sampling)
        self._tokens, self._history = list(prompt), History(prompt)
        self._prompt_length = len(prompt)

    def propose(self, limit: int) -> Asking[Draft]:
        """Draft a chain of `num_draft_tokens` tokens, or of `limit` if that is less.

        The chain ends early where the draft model is not confident. This depends on the
        distribution at that position, never on the token drawn there: dropping a draft token
        because of its value would bias the output.
        """
        count = min(limit, self.draft_nodes, self._max_seq_len - len(self._tokens))
        self._inner.start(self._tokens, self._sampling)
        guesses: list[int] = []
        places: list[_Place] = []
        while len(guesses) < count:
            tokens, behind = yield from self._block(guesses, count - len(guesses))
            guesses += tokens
            places += behind[: len(tokens)]
            if len(tokens) < len(behind):
                break
        probs = None if self._sampling.greedy or not places else [p.probs for p in places]
        return chain(guesses, None if probs is None else np.stack(probs))

    def _block(self, guesses: list[int], most: int) -> Asking[tuple[list[int], list[_Place]]]:
        """Call the draft model once; it drafts one token, or up to `most` if it speculates.

        Returns the draft tokens and the place of each. There is one place more if the draft ends
        there for lack of confidence.
        """
        inner = yield from self._inner.propose(most - 1)
        scores = yield from score("draft", [*self._tokens, *guesses], inner)
        places: dict[accept.Path, _Place] = {}

        def place(path: accept.Path) -> _Place:
            if path not in places:
                guessed = [*guesses, *(int(inner.tokens[n]) for n in path)]
                history = self._history + guessed
                row = scores.logits[path[-1] + 1 if path else 0]
                logits = self._adjustment(row, history, len(history) - self._prompt_length)
                places[path] = _Place(logits, self._sampling)
            return places[path]

        if self._sampling.greedy:
            verdict = accept.greedy(inner, lambda path: int(np.argmax(place(path).logits)))
        else:
            verdict = accept.sample(inner, lambda path: place(path).probs, self._rng)
        behind = [place(verdict.path[:depth]) for depth in range(len(verdict.path) + 1)]
        self._inner.observe(inner, scores, verdict)
        return self._while_sure(verdict.emitted(inner), behind)

    def _while_sure(
        self, tokens: list[int], places: list[_Place]
    ) -> tuple[list[int], list[_Place]]:
        for kept, place in enumerate(places if self._min_confidence else []):
            if place.confidence < self._min_confidence:
                return tokens[:kept], places[: kept + 1]
        return tokens, places

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append the committed tokens."""
        emitted = verdict.emitted(draft)
        self._tokens += emitted
        self._history.extend(emitted)


def guided_by(options: DraftModel | Hybrid, engine: EngineFacts) -> Proposer:
    """Return a proposer that drafts with a draft model."""
    tokens, draft = options.num_draft_tokens, options.draft
    confidence = options.min_confidence or 0.0
    inner = None
    if draft is not None and draft.heads is not None:
        inner = MedusaProposer("draft", draft.num_draft_tokens, None)
    return DraftModelProposer(engine.max_seq_len, tokens, confidence, inner)


def build(options: DraftModel, engines: Mapping[Role, EngineFacts]) -> Proposer:
    """Return the proposer of `method: draft_model`; `engines` has facts of the role draft."""
    return guided_by(options, engines["draft"])
