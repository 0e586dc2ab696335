"""Draft trees as lists of paths, as Medusa writes them (2401.10774, "medusa_choices").

The path (0, 2) names a node under the root's child (0): the second head's token of rank 2, counted
from 0, after the first head's best. A list is *closed* if every path comes after its own prefix.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence

from specpipe.core.errors import ConfigError

TreePath = tuple[int, ...]
WIDTH = 10  # ranks of one head that are looked at, as upstream
MOST_LEVELS = 256  # of a listed tree: as many as the largest tree has nodes


def complete_tree(paths: Sequence[TreePath]) -> tuple[TreePath, ...]:
    """Return the closed list of `paths` and every prefix that they lack, shallow paths first.

    Raises ConfigError for an empty, repeated or endless path and for a rank outside [0, WIDTH).
    """
    seen: set[TreePath] = set()
    for i, path in enumerate(paths):
        if not path:
            raise ConfigError(f"path {i} is empty: the root is always there and is not listed")
        if len(path) > MOST_LEVELS:
            raise ConfigError(f"path {i} has {len(path)} levels: must have at most {MOST_LEVELS}")
        if path in seen:
            raise ConfigError(f"path {i}, {list(path)}, is listed twice")
        seen.add(path)
        if not all(0 <= rank < WIDTH for rank in path):
            raise ConfigError(
                f"path {i} is {list(path)}: a rank must be from 0 to {WIDTH - 1}, "
                f"since the top {WIDTH} tokens of each head are read"
            )
    whole = {path[:depth] for path in paths for depth in range(1, len(path) + 1)}
    return tuple(sorted(whole, key=lambda path: (len(path), path)))


def grow_tree(
    accuracy: Sequence[Sequence[float]], nodes: int, widest: int | None = None
) -> tuple[TreePath, ...]:
    """Return the closed list of `nodes` paths (fewer if there are no more) of most expected tokens.

    `accuracy[k][r]` is the probability that head k's token of rank r is accepted where the path to
    it is; a path is worth the product along it (2401.10774, section 2.3.3). The list is ordered by
    worth, so each beginning of it is the best tree of its size. At most `widest` nodes of a level
    have children, those of most worth.
    """
    found: list[TreePath] = []
    parents: dict[int, set[TreePath]] = defaultdict(set)  # by level
    frontier: list[tuple[float, TreePath]] = [(-accuracy[0][0], (0,))] if len(accuracy) else []
    while frontier and len(found) < nodes:
        worth, path = heapq.heappop(frontier)
        level, rank = len(path) - 1, path[-1]
        if path[:-1] not in parents[level] and len(parents[level]) == widest:
            continue
        parents[level].add(path[:-1])
        found.append(path)
        if level + 1 < len(accuracy):
            heapq.heappush(frontier, (worth * accuracy[level + 1][0], (*path, 0)))
        if rank + 1 < min(WIDTH, len(accuracy[level])) and accuracy[level][rank] > 0:
            ratio = accuracy[level][rank + 1] / accuracy[level][rank]
            heapq.heappush(frontier, (worth * ratio, (*path[:-1], rank + 1)))
    return tuple(found)


def assumed_accuracy(heads: int) -> tuple[tuple[float, ...], ...]:
    """Return what to expect of heads that come without a calibration: an assumption, not a fact."""
    return tuple(
        tuple(0.55 * 0.85**head * 0.35**rank for rank in range(WIDTH)) for head in range(heads)
    )


def supposed_accuracy(levels: int, first: float) -> tuple[tuple[float, ...], ...]:
    """Return an accuracy table in which the likeliest token is right with chance `first`.

    This describes drafters that see the draft token before. Each further rank is assumed to be
    right in a quarter of the cases in which all earlier ranks are wrong; nothing measured this.
    """
    row = (first, *((1 - first) * 0.25 * 0.75**rank for rank in range(WIDTH - 1)))
    return (row,) * levels


def chain(length: int) -> tuple[TreePath, ...]:
    """Return the tree of one path of this length."""
    return tuple((0,) * nodes for nodes in range(1, length + 1))


def depth(tree: Sequence[TreePath]) -> int:
    """Count the levels of a tree; 0 for none."""
    return max((len(path) for path in tree), default=0)


def non_leaves(tree: Sequence[TreePath]) -> tuple[int, ...]:
    """Count the nodes of every level that have children, the root's level apart."""
    parents = {path[:-1] for path in tree}
    return tuple(sum(len(p) == level for p in parents) for level in range(1, depth(tree)))


def expected_tokens(accuracy: Sequence[Sequence[float]], tree: Sequence[TreePath]) -> float:
    """Return the tokens that a step over `tree` is expected to emit, the target's own included."""
    total = 1.0
    for path in tree:
        worth = 1.0
        for level, rank in enumerate(path):
            worth *= accuracy[level][rank]
        total += worth
    return total
