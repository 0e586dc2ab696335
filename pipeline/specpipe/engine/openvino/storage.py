"""The memory of the KV pool: one array for all layers, which graphs read and write in place."""

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specpipe.core.contracts import Ints, Logits
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.blocks import BLOCK

_KINDS = {ov.Type.f32: np.float32, ov.Type.f16: np.float16, ov.Type.bf16: np.uint16}


class KVStorage:
    """Blocks of BLOCK rows; see `blocks.Storage`. A slot is block * BLOCK + row in the block."""

    def __init__(self, model: ModelConfig, blocks: int, kind: ov.Type) -> None:
        """Reserve the memory; the kernel provides it when it is first written.

        Of a model with an EAGLE-3 drafter it also has what the drafter reads of every row.
        """
        self.kind = kind
        self.blocks = blocks
        shape = (model.num_key_value_heads, BLOCK, model.head_size)
        # Zeros, not garbage: padded attention multiplies masked rows by 0, and 0 * NaN is NaN.
        self._array = np.zeros((2 * model.num_hidden_layers, blocks, *shape), _KINDS[kind])
        width = model.eagle3.net.hidden_size if model.eagle3 else 0
        self._features = np.zeros((blocks, BLOCK, width), np.float32)

    def tensors(self) -> list[ov.Tensor]:
        """Return views: layer 0's keys, its values, layer 1's keys ..."""
        shape = list(self._array.shape[1:])
        return [ov.Tensor(view, shape, self.kind) for view in self._array]

    def copy_block(self, source: int, target: int) -> None:
        """Copy all rows of a block, of all layers."""
        self._array[:, target] = self._array[:, source]
        self._features[target] = self._features[source]

    def move_rows(self, source: Ints, target: Ints) -> None:
        """Copy rows between slots, of all layers; all are read before one is written."""
        rows = self._array[:, source // BLOCK, :, source % BLOCK]
        self._array[:, target // BLOCK, :, target % BLOCK] = rows
        self._features[target // BLOCK, target % BLOCK] = self.features(source)

    def features(self, slots: Ints) -> Logits:
        """Return what the drafter reads of the rows in slots [T], as [T, D]."""
        found: Logits = self._features[slots // BLOCK, slots % BLOCK]
        return found

    def write_features(self, slots: Ints, rows: Logits) -> None:
        """Write what the drafter reads [T, D] of the rows in slots [T]."""
        self._features[slots // BLOCK, slots % BLOCK] = rows

    def write(self, layers: Ints, slots: Ints, rows: Logits) -> None:
        """Write keys and values [2 * layers, T, K * h] of some layers into slots [T]."""
        caches = np.stack([2 * layers, 2 * layers + 1], 1).reshape(-1, 1)
        heads, _, size = self._array.shape[2:]
        values = self._stored(rows).reshape(len(caches), len(slots), heads, size)
        self._array[caches, slots // BLOCK, :, slots % BLOCK] = values

    def _stored(self, rows: Logits) -> NDArray[np.generic]:
        if self.kind != ov.Type.bf16:
            return rows.astype(self._array.dtype)
        bits = rows.view(np.uint32)  # round to nearest, ties to even
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
