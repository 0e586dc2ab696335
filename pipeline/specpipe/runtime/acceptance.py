"""Estimates the acceptance of draft tokens by depth, from scored drafts and from shadows.

A *shadow* is a draft that was made but not scored. The tokens that its stream emits afterwards tell
which of its nodes would have been accepted, at the price of no rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Floats

DEPTHS = 32  # depths with a probability of their own
FIRST_GUESS = 0.6  # acceptance of a draft token before any was seen
RATE = 0.1  # weight of one draft of a stream


@dataclass
class AcceptanceEstimate:
    """Estimates the acceptance of draft tokens by depth, and how far drafters overrate theirs."""

    by_depth: Floats = field(default_factory=lambda: np.full(DEPTHS, FIRST_GUESS))
    expected: float = 1.0  # tokens, by the drafters' own probabilities; decays
    accepted: float = 1.0  # of those
    drafts: int = 0  # that were learned from

    def learn(self, drafted: int, accepted: int, rate: float) -> None:
        """Take note of one draft: the first rejected depth was tested too.

        The first drafts count more than `rate`, so that the first guess is soon forgotten.
        """
        self.drafts += 1
        rate = max(rate, 1 / (2 + self.drafts))
        for depth in range(min(accepted, DEPTHS)):
            self.by_depth[depth] += rate * (1 - self.by_depth[depth])
        if accepted < min(drafted, DEPTHS):
            self.by_depth[accepted] *= 1 - rate

    def survival(self, depth: int) -> Floats:
        """Return the probability that a path stands down to each of `depth` depths."""
        known = self.by_depth[:depth]
        rest = np.full(max(0, depth - DEPTHS), known[-1] if len(known) else 0.0)
        return np.cumprod(np.concatenate([known, rest]))

    @property
    def honesty(self) -> float:
        """Return the factor from a drafter's own probabilities to those that were observed."""
        return min(2.0, max(0.05, self.accepted / self.expected))

    def calibrate(self, expected: float, accepted: int, rate: float) -> None:
        """Take note of a draft that came with probabilities."""
        self.expected += rate * (expected - self.expected)
        self.accepted += rate * (accepted - self.accepted)


@dataclass
class Shadow:
    """A draft that was not scored; see the module."""

    draft: Draft
    expected: float | None  # accepted tokens, by the drafter's own probabilities
    accepted: int = 0
    _node: int = ROOT  # the last one that was emitted

    def follow(self, tokens: Sequence[int]) -> bool:
        """Compare emitted tokens; tell whether the number of accepted ones is known."""
        parents = self.draft.parents
        for token in tokens:
            below = np.flatnonzero((parents == self._node) & (self.draft.tokens == token))
            if not len(below):
                return True
            self._node = int(below[0])
            self.accepted += 1
        return not bool((parents == self._node).any())
