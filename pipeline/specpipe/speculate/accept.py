"""Acceptance: the accepted part of a draft and the token after it. Pure functions in float64.

A *path* is a tuple of draft nodes, starting below the root. The target's distribution is computed
lazily, path by path, because penalties and length rules make it depend on the tokens before.
"""

import math
from collections.abc import Callable

import numpy as np

from specpipe.core.contracts import ROOT, Draft, Floats, Verdict

Path = tuple[int, ...]
Distributions = Callable[[Path], Floats]  # path -> the target's distribution [V] after it
_BLOCK = 256  # tokens per partial sum when one token is drawn

Rule = Callable[[Draft, Distributions, np.random.Generator], Verdict]


def greedy(draft: Draft, best: Callable[[Path], int]) -> Verdict:
    """Follow the target's own tokens down the tree for as long as the draft contains them.

    `best(path)` is the target's token after `path`, the most likely one or a drawn one. It is asked
    for once per emitted token. So with equal random numbers, drawn tokens are those of plain
    decoding, whatever the draft contains.
    """
    below: dict[tuple[int, int], int] = {}  # the first node of a parent and a token
    acceptable = len(draft) - draft.scratch
    places = zip(draft.parents[:acceptable].tolist(), draft.tokens.tolist(), strict=False)
    for node, place in enumerate(places):
        below.setdefault(place, node)
    path: Path = ()
    while True:
        token = best(path)
        child = below.get((path[-1] if path else ROOT, token))
        if child is None:
            return Verdict(path, token)
        path += (child,)


def sample(draft: Draft, target: Distributions, rng: np.random.Generator) -> Verdict:
    """Emit tokens with exactly the target's distribution, for any draft.

    `target(path)` is the target's distribution [V] after `path`. Draft tokens that were drawn are
    judged by the ratio of the distributions, others by comparison.
    """
    if draft.probs is None:
        return greedy(draft, lambda path: draw(target(path), rng))
    return _rejection(draft, draft.probs, target, rng)


def _rejection(
    draft: Draft, probs: Floats, target: Distributions, rng: np.random.Generator
) -> Verdict:
    """Judge draft tokens that were drawn from `probs` [n, V].

    A draft token x drawn from q is accepted with probability min(1, p(x) / q(x)). If it is
    rejected, p becomes the normalized max(p - q, 0), and the next sibling is tested with this p
    (Leviathan et al. 2211.17192, algorithm 1; for siblings SpecInfer 2305.09781, algorithm 2).
    """
    path: Path = ()
    while True:
        p = target(path)
        for child in children(draft, path):
            x, q = int(draft.tokens[child]), probs[child]
            if rng.random() * q[x] < p[x]:
                path += (child,)
                break
            p = residual(p, q)
        else:
            return Verdict(path, draw(p, rng))


def typical(
    draft: Draft,
    target: Distributions,
    rng: np.random.Generator,
    epsilon: float,
    delta: float,
) -> Verdict:
    """Accept tokens that are typical of the target; NOT lossless.

    The rule is that of Medusa (2401.10774, section 2.3.1). A draft token x is accepted if
    p(x) > min(epsilon, delta * exp(-H(p))), where H is the entropy of p in nats; a smaller epsilon
    accepts more. The deepest path wins, of equally deep ones the likeliest. The next token is drawn
    from the target's distribution after that path.
    """
    best: tuple[int, float, Path] = (0, 0.0, ())
    frontier: list[tuple[float, Path]] = [(0.0, ())]
    for score, path in frontier:
        best = max(best, (len(path), score, path), key=lambda found: found[:2])
        p = target(path)
        floor = min(epsilon, delta * math.exp(_negative_entropy(p)))
        for child in children(draft, path):
            chance = float(p[draft.tokens[child]])
            if chance > floor:
                frontier.append((score + math.log(chance), (*path, child)))
    path = best[2]
    return Verdict(path, draw(target(path), rng))


def _negative_entropy(p: Floats) -> float:
    positive = p[p > 0]
    return float((positive * np.log(positive)).sum())


def children(draft: Draft, path: Path) -> list[int]:
    """Return the acceptable children of the last node of `path`, in draft order."""
    if not len(draft):
        return []
    parent = path[-1] if path else ROOT
    eligible = draft.parents[: len(draft) - draft.scratch]
    return [int(c) for c in np.flatnonzero(eligible == parent)]


def draw(p: Floats, rng: np.random.Generator) -> int:
    """Draw a token from the distribution `p` [V]."""
    starts = np.arange(0, len(p), _BLOCK)
    sums = np.cumsum(np.add.reduceat(p, starts))
    at = rng.random() * sums[-1]  # the last sum is 1 up to rounding
    block = _reaching(sums, at)
    inside = np.cumsum(p[starts[block] : starts[block] + _BLOCK])
    return int(starts[block]) + _reaching(inside, at - (sums[block - 1] if block else 0.0))


def _reaching(sums: Floats, at: float) -> int:
    """Return the first index where ascending `sums` exceed `at`, or else their last increase.

    So a token of probability zero is never drawn, and rounding cannot give an invalid index.
    """
    place = int(np.searchsorted(sums, at, side="right"))
    return place if place < len(sums) else int(np.searchsorted(sums, sums[-1]))


def residual(p: Floats, q: Floats) -> Floats:
    """Return the normalised max(p - q, 0)."""
    rest: Floats = np.maximum(p - q, 0.0)
    total = rest.sum()
    if total <= 0:
        # p == q up to rounding: a rejection had probability 0, and p is the correct distribution.
        return p
    rest /= total
    return rest
