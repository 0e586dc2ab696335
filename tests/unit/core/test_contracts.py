"""A part of a draft: the same paths, with everything that belongs to their nodes."""

import numpy as np

from specpipe.core.contracts import ROOT, Draft


def paths(draft: Draft) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens.tolist(), draft.parents.tolist(), strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    return found


def test_a_part_of_a_draft_has_the_paths_probabilities_and_chances_of_its_nodes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 9))
        parents = np.array([rng.integers(ROOT, node) for node in range(size)])
        probs, chances = rng.random((size, 3)), rng.random(size)
        draft = Draft(rng.integers(0, 50, size), parents, probs, chances=chances)
        kept = [bool(rng.random() < 0.7)]
        for parent in parents[1:].tolist():  # no node without its parent
            kept.append(bool(rng.random() < 0.7) and (parent == ROOT or kept[parent]))
        nodes = np.flatnonzero(kept)
        part = draft.only(nodes)
        assert paths(part) == [paths(draft)[node] for node in nodes]
        assert np.array_equal(np.asarray(part.probs), probs[nodes])
        assert np.array_equal(np.asarray(part.chances), chances[nodes])
