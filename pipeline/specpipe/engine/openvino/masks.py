"""The arrays of padded attention (`padded.py`): a batch of B sequences with n rows and N blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Ints
from specpipe.engine.openvino.attention import mask_name
from specpipe.engine.openvino.batch import Batch
from specpipe.engine.openvino.blocks import BLOCK

HIDDEN = np.float32(-3.0e38)  # added to a score, it makes the attention weight 0


def padded_arrays(batch: Batch, windows: Sequence[int], *, alibi: bool) -> dict[str, NDArray[Any]]:
    """Return the inputs of padded attention by name."""
    count, most = len(batch.past), int(batch.places.max()) + 1
    rows = np.zeros((count, most), np.int32)
    rows[batch.owners, batch.places] = np.arange(len(batch.owners))
    table = _table(batch)
    positions = _key_positions(batch, table.shape[1] * BLOCK, most)
    seen = _visible(batch, table.shape[1] * BLOCK, most)
    found: dict[str, NDArray[Any]] = {
        "padded_table": table,
        "padded_rows": rows,
        "padded_back": (batch.owners * most + batch.places).astype(np.int32),
    }
    for window in windows:
        found[mask_name(window)] = mask(seen, positions, window)
    if alibi:
        found["key_positions"] = positions[:, None, None].astype(np.float32)
    return found


def mask(seen: NDArray[np.bool_], positions: Ints, window: int) -> NDArray[np.float32]:
    """Return [B, 1, n, C]: what rows attend to (`seen`), within `window` positions (0: any)."""
    if window:
        own = positions[:, -seen.shape[1] :, None]
        seen = seen & (positions[:, None] > own - window)
    return np.where(seen, np.float32(0), HIDDEN)[:, None]


def _table(batch: Batch) -> NDArray[np.int32]:
    """Return [B, N]: the blocks of the cached rows, at least one."""
    used = -(-batch.past // BLOCK)
    column = np.arange(max(1, int(used.max())))
    at = np.minimum(batch.table_begins[:-1, None] + column, len(batch.table) - 1)
    return np.where(column < used[:, None], batch.table[at], batch.table[0]).astype(np.int32)


def _key_positions(batch: Batch, cached: int, most: int) -> Ints:
    """Return [B, C]: the position of every column in its sequence."""
    positions = np.zeros((len(batch.past), cached + most), np.int64)
    positions[:, :cached] = np.arange(cached)
    positions[batch.owners, cached + batch.places] = batch.positions
    return positions


def _visible(batch: Batch, cached: int, most: int) -> NDArray[np.bool_]:
    """Return [B, n, C]: each row sees the cached rows, its ancestors and itself."""
    seen = np.zeros((len(batch.past), most, cached + most), np.bool_)
    seen[:, :, :cached] = (np.arange(cached) < batch.past[:, None])[:, None]
    seen[:, :, cached:] = np.tri(most, dtype=np.bool_)
    for own, tree in zip(seen[:, :, cached:], batch.seen, strict=True):
        if tree is not None:
            own[: len(tree), : len(tree)] = tree
    return seen
