"""One token drawn from the distribution that a request specifies, without computing all of it.

The distribution is that of `sampling.distribution`, in float64. Weights are computed for the *head*
only: the likeliest tokens, some percent of the vocabulary. The weight of every other token is at
most `bound`. So a token is proposed from the head's weights and from the same weight `bound` for
all tokens, and a proposed token is accepted with the probability of its weight / `bound` (rejection
sampling, von Neumann 1951). A token outside the set of top_p is rejected too. The result is exact;
the number of random numbers per token varies.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specpipe.core.contracts import Floats, Ints, Logits, Sampling
from specpipe.core.errors import StageFailed
from specpipe.speculate import accept
from specpipe.speculate.sampling import candidates
from specpipe.speculate.selection import Scale, error_of_rough, top_p

FEW = 1024  # tokens whose weights are all computed
_SAMPLE = 512  # logits among which the border of the head is searched for
_HEAD = 16  # of those, the number above the border
_FAR = 12.0  # nats below the likeliest token: where the head ends at the latest
_LEAST_SHARE = 0.5  # of top_p: smaller sets are cheap to find, and proposals are often outside

_Bounds = tuple[float, float]  # a sum of weights is at least the first and at most the second


def draw_token(logits: Logits, options: Sampling, rng: np.random.Generator) -> int:
    """Draw a token from `distribution(logits, options)`; `logits` [V] are adjusted already.

    Raises StageFailed if the likeliest logit is not a finite number.
    """
    if options.greedy:
        return int(np.argmax(logits))
    limited = 0 < options.top_k < len(logits) or options.top_p < _LEAST_SHARE
    if limited or len(logits) <= FEW:
        places, weights = candidates(logits, options)
        drawn = accept.draw(weights, rng)
        return drawn if places is None else int(places[drawn])
    return head_of(logits, options.temperature).draw(options.top_p, rng)


@dataclass(frozen=True, eq=False)
class Head:
    """The tokens above `border`, with their weights, and all logits [V]."""

    logits: Logits
    scale: Scale
    border: float
    places: Ints  # [n]  ascending
    weights: Floats  # [n]

    @cached_property
    def bound(self) -> float:
        """The weight at the border: that of the tokens outside the head is at most this."""
        return self.scale.one(self.border)

    @cached_property
    def total(self) -> float:
        return float(self.weights.sum())

    @cached_property
    def _sums(self) -> Floats:
        """What the weights of the head exceed `bound` by, cumulated; a 0 first."""
        return np.concatenate([[0.0], np.cumsum(self.weights - self.bound)])

    def draw(self, share: float, rng: np.random.Generator) -> int:
        """Draw a token by its weight, from the set of top_p = `share`."""
        while True:
            token = self._draw_any(rng)
            if share == 1 or self.is_kept(token, share):
                return token

    def _draw_any(self, rng: np.random.Generator) -> int:
        excess, even = float(self._sums[-1]), self.bound * len(self.logits)
        while True:
            at = rng.random() * (excess + even)
            if at < excess:
                return int(self.places[np.searchsorted(self._sums, at, side="right") - 1])
            token = int(rng.random() * len(self.logits))
            if rng.random() * self.bound < self.scale.one(float(self.logits[token])):
                return token

    def is_kept(self, token: int, share: float) -> bool:
        """Tell whether the tokens before this one, in order, have less than `share` of all weight.

        The cheap bounds decide for most tokens.
        """
        for bounds in (self._bounds, self._rough_bounds):
            before, whole = bounds(token)
            if before[1] < share * whole[0]:
                return True
            if before[0] >= share * whole[1]:
                return False
        return bool((top_p(self.logits, self.scale.temperature, share)[0] == token).any())

    def _bounds(self, token: int) -> tuple[_Bounds, _Bounds]:
        """Return bounds of the weight before a token, and of all weight."""
        whole = self.total, self.total + self.bound * (len(self.logits) - len(self.places))
        if self.logits[token] <= self.border:
            return (self.total, math.inf), whole
        index = int(np.searchsorted(self.places, token))
        before = _weight_before(self.logits[self.places], self.weights, index)
        return (before, before), whole

    def _rough_bounds(self, token: int) -> tuple[_Bounds, _Bounds]:
        """Return closer bounds, from the weights of all tokens in float32."""
        rough, whole = self._rough
        error = error_of_rough(whole, len(rough))
        before, _ = self._bounds(token)
        if self.logits[token] <= self.border:
            sum_before = _weight_before(self.logits, rough, token)
            before = sum_before - error, sum_before + error
        return before, (whole - error, whole + error)

    @cached_property
    def _rough(self) -> tuple[Logits, float]:
        rough = self.scale.rough(self.logits)
        return rough, float(rough.sum(dtype=np.float64))


def head_of(logits: Logits, temperature: float) -> Head:
    """Return a head of about `_HEAD` in `_SAMPLE` tokens, or fewer if the others are unlikely."""
    scale = Scale.of(logits, temperature)
    if not math.isfinite(scale.peak):
        raise StageFailed(f"the largest logit is {scale.peak}: no token can be drawn")
    peak = np.float32(scale.peak)
    sample = logits[:: len(logits) // _SAMPLE]
    rank = len(sample) - 1 - _HEAD
    far = min(np.float32(scale.peak - _FAR * temperature), np.nextafter(peak, np.float32(-np.inf)))
    border = max(float(far), float(np.partition(sample, rank)[rank]))
    places = np.flatnonzero(logits > border)
    return Head(logits, scale, border, places, scale.exact(logits[places]))


def _weight_before(values: Logits, weights: Floats | Logits, index: int) -> float:
    """Return the weight of all tokens that are likelier, or as likely with a smaller index."""
    likelier = float((weights * (values > values[index])).sum(dtype=np.float64))
    equal = np.count_nonzero(values[:index] == values[index])
    return likelier + equal * float(weights[index])
