"""The tokens that top_k and top_p keep, found without sorting the vocabulary.

The order is that of a stable sort: most likely first, equal logits by index. Both functions return
the same tokens as such a sort.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Floats, Ints, Logits

_FEW = 256  # tokens that are cheap to sort
_SAMPLE = 512  # logits among which the border of a large set is searched for first


@dataclass(frozen=True)
class Scale:
    """Converts logits into weights; the weight of the likeliest token is 1."""

    peak: float
    temperature: float

    @staticmethod
    def of(logits: Logits, temperature: float) -> "Scale":
        """Return the scale of all `logits` [V]."""
        return Scale(float(logits.max()), temperature)

    def one(self, logit: float) -> float:
        """Return one weight in float64, as `exact` does."""
        return math.exp(logit / self.temperature - self.peak / self.temperature)

    def exact(self, logits: Logits) -> Floats:
        """Return weights in float64."""
        scaled = logits.astype(np.float64)
        scaled /= self.temperature
        scaled -= self.peak / self.temperature
        return np.exp(scaled, out=scaled)

    def rough(self, logits: Logits) -> Logits:
        """Return weights in float32; `error_of_rough` bounds the error of their sums."""
        with np.errstate(over="ignore"):  # only differences whose weight is 0 can overflow
            scaled: Logits = logits - np.float32(self.peak)
            scaled /= np.float32(self.temperature)
        np.exp(scaled, out=scaled)
        return scaled


def error_of_rough(rough_sum: float, count: int) -> float:
    """Return the largest error of a sum of `count` rough weights.

    A weight exp(-a) is off by at most (3 a + 5) / 2**24 of itself: three roundings of `a`, and the
    2.5 units in the last place of numpy's exp. With weights that sum to R, the mean of `a` is their
    entropy less ln R, so at most ln(count / R). Doubled, which covers terms of second order.
    """
    rest = max(rough_sum, 1e-30)
    return rest * 2 * (3 * max(0.0, math.log(count / rest)) + 5) / 2**24


@dataclass(frozen=True, eq=False)
class Border:
    """Where a set of the likeliest tokens ends: it has all above `high`, and some of `order`."""

    high: float
    order: Ints  # the likeliest tokens that are not above `high`, in order


def weights_of(logits: Logits, temperature: float) -> Floats:
    """Return the unnormalized probabilities of `logits`; the largest is 1."""
    return Scale.of(logits, temperature).exact(logits)


def top_k(logits: Logits, k: int) -> Ints:
    """Return the positions of the `k` likeliest tokens, ascending; 1 <= k < len(logits)."""
    near = np.flatnonzero(logits >= _reached_by(logits, k))
    values = logits[near]
    border = np.partition(values, -k)[-k]
    keep = values > border
    keep[np.flatnonzero(values == border)[: k - np.count_nonzero(keep)]] = True
    kept: Ints = near[keep]
    return kept


def top_p(logits: Logits, temperature: float, p: float) -> tuple[Ints, Floats]:
    """Return the smallest set of likeliest tokens whose probabilities reach `p`.

    The positions are in any order; the weights are those of `weights_of`. The weights of the set
    are computed in float64. Of the other tokens only the sum is needed; it is computed in float32,
    or in float64 if its error could change the set. So the set is that of float64 arithmetic. If
    the probability of the set differs from `p` only by rounding (1e-12), it can have one token more
    or less.
    """
    scale = Scale.of(logits, temperature)
    if len(logits) <= 2 * _FEW:
        return _from_all(logits, scale, p)
    rough = scale.rough(logits)
    whole = _sum(rough)
    border = find_border(logits, rough, p * whole)
    inside = np.flatnonzero(logits > border.high)
    weights, last = scale.exact(logits[inside]), scale.exact(logits[border.order])
    rest = whole - _sum(rough[inside]) - _sum(rough[border.order])
    total = _sum(weights) + _sum(last) + rest
    count = _cut(_sum(weights), last, p * total, error_of_rough(rest, len(logits)) / total)
    if count is None:
        return _from_all(logits, scale, p, border)
    kept = np.concatenate([inside, border.order[:count]])
    return kept, np.concatenate([weights, last[:count]])


def _from_all(
    logits: Logits, scale: Scale, p: float, border: Border | None = None
) -> tuple[Ints, Floats]:
    """Return what `top_p` does, from the weights of all tokens in float64.

    The set ends at `border`, unless rounding misled the search for it: then all are sorted.
    """
    weights = scale.exact(logits)
    target = p * _sum(weights)
    keep, count = np.zeros(len(logits), np.bool_), None
    if border is not None:
        keep = logits > border.high
        count = _cut(_sum(weights[keep]), weights[border.order], target)
    if border is None or count is None:
        keep[:] = False
        border = Border(math.inf, _ordered(logits, np.arange(len(logits))))
        before = np.cumsum(weights[border.order]) - weights[border.order]
        count = int(np.searchsorted(before, target))
    keep[border.order[:count]] = True
    return np.flatnonzero(keep), weights[keep]


def _sum(weights: NDArray[Any]) -> float:
    return float(weights.sum(dtype=np.float64))


def _cut(inside: float, last: Floats, target: float, error: float = 0.0) -> int | None:
    """Return how many of the weights `last` follow those that sum to `inside`, to reach `target`.

    None if the set does not end among them, or if where it ends is decided by less than `error`, a
    fraction of `target`.
    """
    reached = inside + np.cumsum(last)
    before = np.concatenate([[inside], reached[:-1]])
    low, high = np.searchsorted(before, [target * (1 - error), target * (1 + error)])
    certain = 0 < low == high and reached[-1] >= target * (1 + error)
    return int(low) if certain else None


def _reached_by(logits: Logits, count: int) -> np.float32:
    """Return a value that at least `count` of the logits reach, and not many more.

    It is the `count`-th largest of the maxima of some thousand disjoint sets of them.
    """
    sets = max(1, len(logits) // (4 * count))
    width = len(logits) // sets
    maxima = logits[: sets * width].reshape(sets, width).max(axis=0)
    value: np.float32 = np.partition(maxima, -count)[-count]
    return value


def find_border(logits: Logits, weights: Logits, target: float) -> Border:
    """Return where the weights of the likeliest tokens reach `target`, with room for rounding."""
    if target < _FEW:  # no weight is above 1
        head = np.flatnonzero(logits >= _reached_by(logits, _FEW))
        if len(head) <= 4 * _FEW and _sum(weights[head]) > target:
            return Border(math.inf, _ordered(logits, head))
    return _border_of_many(logits, weights, target)


def _border_of_many(logits: Logits, weights: Logits, target: float) -> Border:
    """Search among the logits of a sample, around where the sample's own weights point to.

    One logit more at either side, lest the rounding of a sum mislead the search.
    """
    step = len(logits) // _SAMPLE
    sample = np.argsort(-logits[::step]) * step
    marks = np.concatenate([[np.inf], logits[sample], [-np.inf]]).astype(np.float32)
    reached = np.cumsum(weights[sample])
    guess = int(np.searchsorted(reached, target / _sum(weights) * reached[-1]))
    width = _SAMPLE // 32
    while True:
        low = guess - width if guess > 4 * width else 0  # from 0 on, few lie between
        high = min(guess + width, len(marks) - 1)
        above = float(weights @ (logits > marks[low])) if low else 0.0
        places = np.flatnonzero((logits <= marks[low]) & (logits > marks[high]))
        enough = above + _sum(weights[places]) >= target
        if (above < target and enough) or (low == 0 and high == len(marks) - 1):
            break
        width *= 8
    values, weights, rest = logits[places], weights[places], target - above
    at = bisect_left(range(low, high), rest, key=lambda i: float(weights @ (values > marks[i])))
    first, last = marks[max(low, low + at - 2)], marks[min(low + at + 1, high)]
    return Border(float(first), _ordered(logits, places[(values <= first) & (values > last)]))


def _ordered(logits: Logits, places: Ints) -> Ints:
    """Sort ascending `places`: the likeliest first, of equals the first."""
    ordered: Ints = places[np.argsort(-logits[places], kind="stable")]
    return ordered
