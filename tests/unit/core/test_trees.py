"""Draft trees: what is completed, what is refused, and which tree is worth most."""

import itertools

import pytest

from specpipe.core.errors import ConfigError
from specpipe.core.trees import (
    WIDTH,
    assumed_accuracy,
    complete_tree,
    depth,
    expected_tokens,
    grow_tree,
    non_leaves,
    supposed_accuracy,
)

ACCURACY = ((0.6, 0.2, 0.1), (0.5, 0.3, 0.05), (0.4, 0.1, 0.05))


def test_missing_prefixes_are_completed_and_shallow_paths_come_first() -> None:
    tree = complete_tree([(1, 0, 2), (0,)])
    assert tree == ((0,), (1,), (1, 0), (1, 0, 2))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([(0,), ()], "path 1 is empty"),
        ([(0,), (1,), (0,)], r"path 2, \[0\], is listed twice"),
        ([(0, WIDTH)], rf"path 0 is \[0, {WIDTH}\]: a rank must be from 0 to {WIDTH - 1}"),
        ([(-1,)], r"path 0 is \[-1\]"),
    ],
)
def test_illegal_paths_are_refused_with_the_reason(paths, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        complete_tree(paths)


@pytest.mark.parametrize("nodes", range(1, 7))
def test_a_grown_tree_is_worth_as_much_as_any_of_its_size(nodes: int) -> None:
    every = [p for depth in (1, 2, 3) for p in itertools.product(range(3), repeat=depth)]
    closed = [
        tree
        for tree in itertools.combinations(every, nodes)
        if all(path[:-1] in tree or len(path) == 1 for path in tree)
    ] if nodes <= 3 else []  # fmt: skip
    grown = grow_tree(ACCURACY, nodes)
    assert len(grown) == nodes
    assert all(len(path) == 1 or path[:-1] in grown[:i] for i, path in enumerate(grown))
    best = max((expected_tokens(ACCURACY, tree) for tree in closed), default=0.0)
    assert expected_tokens(ACCURACY, grown) >= best - 1e-12


def test_each_beginning_of_a_grown_tree_is_the_smaller_tree() -> None:
    assert grow_tree(ACCURACY, 6)[:4] == grow_tree(ACCURACY, 4)


def test_there_are_no_more_nodes_than_guesses() -> None:
    assert len(grow_tree(((0.5, 0.4), (0.3, 0.2)), 100)) == 2 + 4
    assert grow_tree((), 5) == ()


def test_no_more_nodes_of_a_level_have_children_than_asked_for() -> None:
    accuracy = supposed_accuracy(4, 0.7)
    for widest in (1, 3, 10):
        tree = grow_tree(accuracy, 63, widest)
        assert max(non_leaves(tree)) == widest and depth(tree) == 4
        assert sorted(tree, key=lambda path: (len(path), path)) == list(complete_tree(tree))
    free = grow_tree(accuracy, 63)
    assert max(non_leaves(free)) > 10
    assert expected_tokens(accuracy, free) > expected_tokens(accuracy, grow_tree(accuracy, 63, 10))


def test_levels_and_their_nodes_with_children_are_counted() -> None:
    tree = ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
    assert (depth(tree), non_leaves(tree)) == (3, (2, 1))
    assert (depth(()), non_leaves(((0,), (1,)))) == (0, ())


def test_supposed_guesses_of_one_level_are_no_more_than_certain() -> None:
    for first in (0.1, 0.7, 1.0):
        (row,) = supposed_accuracy(1, first)
        assert row[0] == first and sum(row) <= 1


def test_expected_tokens_by_hand() -> None:
    assert expected_tokens(ACCURACY, [(0,), (0, 1)]) == pytest.approx(1 + 0.6 + 0.6 * 0.3)


def test_assumed_heads_are_less_sure_with_depth_and_rank() -> None:
    accuracy = assumed_accuracy(3)
    assert accuracy[0][0] > accuracy[1][0] > accuracy[2][0]
    assert list(accuracy[0]) == sorted(accuracy[0], reverse=True)
    assert all(sum(row) <= 1 for row in accuracy)
