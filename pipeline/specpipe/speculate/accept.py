"""Acceptance: which part of a draft stands, and which token follows. Pure functions in float64.

A *path* is a tuple of draft nodes, root first. The target is asked lazily, path by path, because
penalties and length rules make its answer depend on the tokens before.
"""

from collections.abc import Callable

import numpy as np

from specpipe.contracts import ROOT, Draft, Floats, Verdict

Path = tuple[int, ...]


def greedy(draft: Draft, best: Callable[[Path], int]) -> Verdict:
    """Follow the target's choice down the tree for as long as the draft contains it.

    `best(path)` is the target's token after `path`.
    """
    path: Path = ()
    while True:
        token = best(path)
        child = next((c for c in children(draft, path) if draft.tokens[c] == token), None)
        if child is None:
            return Verdict(path, token)
        path += (child,)


def sample(draft: Draft, law: Callable[[Path], Floats], rng: np.random.Generator) -> Verdict:
    """Emit tokens that are distributed exactly as the target's, whatever was drafted.

    `law(path)` is the target's distribution [V] after `path`. A guess x drawn from q is kept with
    probability min(1, p(x) / q(x)); else p becomes the normalised max(p - q, 0), and the next
    sibling is tried against that (Leviathan et al. 2211.17192, algorithm 1; for siblings SpecInfer
    2305.09781, algorithm 2). A guess chosen with certainty has the one-hot q.
    """
    path: Path = ()
    while True:
        p = law(path)
        for child in children(draft, path):
            x = int(draft.tokens[child])
            q = _one_hot(x, len(p)) if draft.probs is None else draft.probs[child]
            if rng.random() * q[x] < p[x]:
                path += (child,)
                break
            p = _residual(p, q)
        else:
            return Verdict(path, draw(p, rng))


def children(draft: Draft, path: Path) -> list[int]:
    """Return the nodes directly under the end of `path` that may be accepted, in draft order."""
    parent = path[-1] if path else ROOT
    eligible = draft.parents[: len(draft) - draft.scratch]
    return [int(c) for c in np.flatnonzero(eligible == parent)]


def draw(p: Floats, rng: np.random.Generator) -> int:
    """Draw a token from the distribution `p` [V]."""
    cumulative = np.cumsum(p)
    # The last value is 1 up to rounding; scaling by it keeps the index in range, and zero-width
    # steps cannot be hit because the search is to the right.
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))


def _residual(p: Floats, q: Floats) -> Floats:
    rest = np.maximum(p - q, 0.0)
    total = rest.sum()
    # p == q up to rounding leaves nothing; a rejection then had probability 0, and p is right.
    return rest / total if total > 0 else p


def _one_hot(token: int, size: int) -> Floats:
    law = np.zeros(size)
    law[token] = 1.0
    return law
