"""Shorthands for the steps of a loaded engine."""

from collections.abc import Sequence

import numpy as np

from specpipe.core.contracts import ROOT
from specpipe.core.engines import Cache, Item, LoadedEngine

BRANCHES = ([11, 12, 13, 14, 15], [ROOT, ROOT, 0, 1, 2])  # tokens and parents of a tree
PATHS = ([11], [12], [11, 13], [12, 14], [11, 13, 15])  # to each of its nodes


def item(
    cache: Cache,
    tokens: Sequence[int],
    parents: Sequence[int] | None = None,
    wanted: Sequence[int] | None = None,
) -> Item:
    """Return an item; all rows are wanted by default."""
    ids = np.asarray(tokens, np.int64)
    above = None if parents is None else np.asarray(parents, np.int64)
    rows = range(len(ids)) if wanted is None else wanted
    return Item(cache, ids, above, np.asarray(rows, np.int64))


def rooted(
    cache: Cache, root: int, tokens: Sequence[int], parents: Sequence[int] | None = None
) -> Item:
    """Return the item of a root and the draft under it, a chain by default."""
    above = range(-1, len(tokens) - 1) if parents is None else parents
    return item(cache, [root, *tokens], [ROOT, *(parent + 1 for parent in above)])


def alone(engine: LoadedEngine, one: Item) -> np.ndarray:
    """Return the logits of an item that is alone in its step."""
    return engine.step([one])[0].logits


def keep(cache: Cache, *rows: int) -> None:
    """Keep these rows of the last step."""
    cache.keep(np.array(rows, np.int64))


def started(engine: LoadedEngine, tokens: Sequence[int]) -> Cache:
    """Return a cache that keeps `tokens`, computed in one step."""
    cache = engine.open()
    if len(tokens):
        engine.step([item(cache, tokens, wanted=[])])
        keep(cache, *range(len(tokens)))
    return cache


def fresh(engine: LoadedEngine, sequence: Sequence[int]) -> np.ndarray:
    """Return the logits after `sequence`, computed from nothing, one token a step."""
    cache = engine.open()
    for token in sequence:
        rows = alone(engine, item(cache, [token]))
        keep(cache, 0)
    cache.release()
    return rows[0]
