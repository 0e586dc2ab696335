"""The record of an EAGLE-3 drafter has the likeliest nodes and the path of first choices."""

from collections.abc import Mapping

import numpy as np

from specpipe.core.contracts import ROOT, Extensions, Predict
from specpipe.tune.growth import BEAMS, LEVELS, Grown, Path, grow_all

FIRST = {1: 0.3, 2: 0.25, 3: 0.23, 4: 0.22}
UNSURE = dict.fromkeys(range(10), 0.1)
SURE = {6: 0.5, 7: 0.4}


def predicted(path: Path) -> Mapping[int, float]:
    """Return what follows a path: nothing is certain below the first choice."""
    if not path:
        return FIRST
    return UNSURE if path[0] == 1 else SURE


def record(tokens: list[int]) -> tuple[Grown, list[int]]:
    """Answer all asks; also return the number of nodes that each was about."""
    growing, counts = grow_all(tokens), list[int]()
    ask = next(growing)
    while True:
        assert isinstance(ask, Predict)
        paths: list[Path] = []
        for token, parent in zip(ask.draft.tokens, ask.draft.parents, strict=True):
            paths.append((*(() if parent == ROOT else paths[parent]), int(token)))
        found = [predicted(() if n == ROOT else paths[n]) for n in ask.wanted.tolist()]
        counts.append(len(found))
        rows = [[*one.items(), *[(-1, 0.0)] * (10 - len(one))] for one in found]
        tokens_of = np.array([[token for token, _ in row] for row in rows])
        probs = np.array([[share for _, share in row] for row in rows])
        try:
            ask = growing.send(Extensions(tokens_of, probs, np.zeros((len(rows), 1), np.float32)))
        except StopIteration as end:
            return end.value, counts


def test_the_path_of_first_choices_is_recorded_where_it_is_not_likely() -> None:
    """A chain follows the first choice, whatever the other paths are worth."""
    found, counts = record([9, 9])
    chain = [(1, *(0,) * below) for below in range(LEVELS - 1)]
    assert all(path in found for path in [(), *chain])
    assert all(path in found for path in [(2,), (3,), (4,), (2, 6), (3, 6), (4, 6), (2, 7)])
    assert (1, 1) not in found  # neither likely nor of first choices
    assert (2, 6, 6) not in found  # no setting runs the drafter on so unlikely a level
    assert counts == [1, BEAMS, BEAMS + 1, *[1] * (LEVELS - 3)]
