"""Draft trees as arrays: what each new row of one sequence attends to, and how deep it is."""

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Ints


def depths(parents: Ints) -> Ints:
    """Return the number of ancestors of each new row, among the new rows."""
    depth = np.zeros(len(parents), np.int64)
    above = [0] * (len(parents) + 1)  # the last entry is that of ROOT
    for row, parent in enumerate(parents.tolist()):
        depth[row] = above[parent]
        above[row] = above[parent] + 1
    return depth


def is_chain(parents: Ints) -> bool:
    """Tell whether every row follows the one before."""
    return bool((parents == np.arange(-1, len(parents) - 1)).all())


def ancestors(parents: Ints) -> NDArray[np.uint8]:
    """Return [n, n]: row i marks i and everything above it."""
    seen = np.eye(len(parents), dtype=np.uint8)
    for row, parent in enumerate(parents.tolist()):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen
