"""A small model guesses, token by token (Leviathan et al. 2211.17192; Chen et al. 2302.01318)."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from specpipe.contracts import (
    EMPTY,
    Draft,
    Floats,
    Logits,
    Proposer,
    Role,
    Runner,
    Sampling,
    Scores,
    Verdict,
    chain,
)
from specpipe.methods import DraftModel
from specpipe.speculate.accept import draw
from specpipe.speculate.draft_length import AdaptiveLength
from specpipe.speculate.sampling import adjust, distribution, log_probability


class DraftModelProposer:
    """Drives a second runner; its guesses come from the very options of the request.

    Rows of the draft's cache are kept from step to step: `follow` drops only what the target
    refused, and feeds what the cache lacks (after a full acceptance, the last guess).
    """

    def __init__(self, runner: Runner, num_draft_tokens: int, min_confidence: float = 0.0) -> None:
        """Guess up to `num_draft_tokens` tokens, only while confident; 0: always."""
        self.draft_nodes = num_draft_tokens
        self._min_confidence = min_confidence
        self._runner = runner
        self._sampling = Sampling()
        self._rng = np.random.default_rng(0)
        self._tokens: list[int] = []
        self._prompt_length = 0

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Load the prompt into the draft model."""
        self._sampling = sampling
        # Guesses must be independent of the verifier's draws: a child of the same seed.
        self._rng = np.random.default_rng([sampling.seed, 1])
        self._tokens = list(prompt)
        self._prompt_length = len(prompt)
        self._runner.start(prompt)

    def propose(self, limit: int) -> Draft:
        """Guess a chain of `num_draft_tokens` tokens, or of `limit` if that is less.

        Ends early where the draft is not confident; whether it is, is decided before a token is
        drawn, for a guess that is dropped because of what was drawn would bias the answer.
        """
        count = min(limit, self.draft_nodes, self._room())
        self._runner.follow(self._tokens)
        guesses: list[int] = []
        laws: list[Floats] = []
        for _ in range(count):
            logits = self._logits(guesses)
            law = distribution(logits, self._sampling)
            if self._min_confidence and self._confidence(logits, law) < self._min_confidence:
                break
            token = draw(law, self._rng)
            self._runner.commit(EMPTY, Verdict((), token))
            guesses.append(token)
            laws.append(law)
        return chain(guesses, None if self._sampling.greedy or not laws else np.stack(laws))

    def _room(self) -> int:
        return max(0, self._runner.max_seq_len - len(self._tokens))

    def _logits(self, guesses: list[int]) -> Logits:
        """Return the adjusted logits of the next guess."""
        history = self._tokens + guesses
        row = self._runner.score(EMPTY).logits[0]
        return adjust(row, self._sampling, history, len(history) - self._prompt_length)

    def _confidence(self, logits: Logits, law: Floats) -> float:
        """Return the largest probability of `law`; of the model's own law if that is one-hot."""
        if self._sampling.greedy:
            return math.exp(log_probability(logits, int(np.argmax(logits))))
        return float(law.max())

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Append what the target committed."""
        self._tokens += [*(int(draft.tokens[n]) for n in verdict.path), verdict.next_token]


def guided_by(
    runner: Runner, num_draft_tokens: int, *, draft_length: str, min_confidence: float
) -> Proposer:
    """Return a proposer that guesses with `runner`, as deep as `draft_length` says."""
    confidence = min_confidence if draft_length == "confidence" else 0.0
    draft = DraftModelProposer(runner, num_draft_tokens, confidence)
    return AdaptiveLength(draft, num_draft_tokens) if draft_length == "adaptive" else draft


def build(options: DraftModel, runners: Mapping[Role, Runner]) -> Proposer:
    """Return the proposer of `method: draft_model`; `runners` holds one for the role draft."""
    return guided_by(
        runners["draft"],
        options.num_draft_tokens,
        draft_length=options.draft_length,
        min_confidence=options.min_confidence,
    )
