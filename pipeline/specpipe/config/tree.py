"""Completes the tree of a run, and the sizes that follow from it."""

from collections.abc import Mapping
from dataclasses import fields, replace

from specpipe.config.speculation import Hybrid, Medusa, Speculation, WithTree
from specpipe.config.upstream_methods import Eagle
from specpipe.config.yaml_nodes import Place
from specpipe.core.errors import ConfigError
from specpipe.core.trees import (
    TreePath,
    complete_tree,
    depth,
    grow_tree,
    non_leaves,
    supposed_accuracy,
)

FIRST_GUESS = 0.7  # how often an EAGLE drafter's first guess is supposed to be right

Places = Mapping[str, Place]
Tree = tuple[TreePath, ...]


def with_whole_tree(options: Speculation, places: Places) -> Speculation:
    """Return options in which a listed tree has all its nodes, and the sizes are the tree's.

    EAGLE's `tree: auto` is grown here: its drafters have no calibration that would have to be
    found first. Raises ConfigError for a tree that is none, or that contradicts a given size.
    """
    if not isinstance(options, WithTree) or options.tree == "dynamic":
        return options
    if options.tree != "auto":
        return _listed(options, options.tree, places)
    if not isinstance(options, Eagle):
        return options
    accuracy = supposed_accuracy(options.num_eagle_layers, FIRST_GUESS)
    widest = options.max_non_leaves_per_layer
    return options.with_tree(grow_tree(accuracy, options.num_draft_tokens, widest))


def is_open(options: Speculation) -> bool:
    """Whether the plan chooses the tree, whose size is not known before the heads are found."""
    return isinstance(options, Medusa | Hybrid) and bool(options.heads) and options.tree == "auto"


def _listed(options: WithTree, paths: Tree, places: Places) -> WithTree:
    """Add what a listed tree lacks; its nodes are the draft tokens of the run."""
    try:
        tree = complete_tree(paths)
    except ConfigError as error:
        raise places["speculation.tree"].error(f"'speculation.tree': {error}") from error
    _check_size("num_draft_tokens", options, len(tree), "nodes", places)
    if not isinstance(options, Eagle):
        return replace(options, tree=tree, num_draft_tokens=len(tree))
    _check_size("num_eagle_layers", options, depth(tree), "levels", places)
    _check_width(options, tree, places)
    return options.with_tree(tree)


def _check_size(key: str, options: WithTree, size: int, what: str, places: Places) -> None:
    """Hold a size of the completed tree against the given one, and against the key's bounds."""
    place, given = places.get(f"speculation.{key}"), getattr(options, key)
    if place and given != size:
        raise place.error(
            f"'speculation.{key}' is {given}, but speculation.tree has {size} {what}",
            hint="leave it out",
        )
    (bound,) = (f.metadata["bound"] for f in fields(options) if f.name == key)
    if problem := bound.problem(size):
        raise places["speculation.tree"].error(
            f"'speculation.tree' has {size} {what} with those that its paths pass: {problem}"
        )


def _check_width(options: Eagle, tree: Tree, places: Places) -> None:
    widest = max(non_leaves(tree), default=0)
    if widest > options.max_non_leaves_per_layer:
        place = places.get("speculation.max_non_leaves_per_layer") or places["speculation"]
        raise place.error(
            f"'speculation.max_non_leaves_per_layer' is {options.max_non_leaves_per_layer}, but "
            f"speculation.tree has {widest} nodes with children on one level",
            hint=f"set it to {widest}, or give a narrower tree",
        )
