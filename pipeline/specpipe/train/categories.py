"""The measures of a hold-out for each category of its documents."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.train.text import Bools

Measures = Mapping[str, float]
OTHERS = "others"  # documents without a category


def members(categories: Sequence[str]) -> dict[str, Bools]:
    """Return for each category which of the entries are of it; nothing if no entry has any."""
    if not any(categories):
        return {}
    array = np.array([name or OTHERS for name in categories])
    return {str(name): array == name for name in np.unique(array)}


def by_category(
    categories: Sequence[str], sums: NDArray[Any], measures: Callable[[NDArray[Any]], Measures]
) -> tuple[Measures, dict[str, Measures]]:
    """Return the measures of all documents, and those of each category.

    `sums` [documents, ...] are added up over documents, and `measures` follow from the result.
    """
    found = {name: measures(sums[rows].sum(0)) for name, rows in members(categories).items()}
    return measures(sums.sum(0)), found


def acceptance(hits: NDArray[Any], positions: NDArray[Any]) -> dict[str, float]:
    """Return the acceptance by depth of a chain of draft tokens, and its length.

    `hits` [depths]: positions at which all tokens up to a depth are right; `positions` [depths]:
    those with a text that long. The length adds the shares up, with the token of the target.
    """
    shares = (hits / np.maximum(positions, 1)).tolist()
    named = {f"acceptance at depth {depth}": share for depth, share in enumerate(shares, 1)}
    return named | {"length": 1 + sum(shares)}
