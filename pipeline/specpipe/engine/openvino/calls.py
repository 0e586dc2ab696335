"""One compiled graph with its KV pool bound to it, and the inputs of paged attention."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specpipe.core.contracts import Logits
from specpipe.engine.openvino.batch import Batch
from specpipe.engine.openvino.storage import KVStorage

Arrays = Mapping[str, NDArray[Any]]


class CompiledCall:
    """The only request of a compiled network, with the pool bound to it."""

    def __init__(self, network: ov.CompiledModel, storage: KVStorage) -> None:
        """Bind the caches of all layers."""
        self._request = network.create_infer_request()
        self.ports = {port.get_any_name(): port for port in (*network.inputs, *network.outputs)}
        self._bound: dict[str, NDArray[Any]] = {}
        for i, tensor in enumerate(storage.tensors()):
            name = f"{'value' if i % 2 else 'key'}_cache.{i // 2}"
            self._request.set_tensor(self.ports[name], tensor)

    def run(self, feeds: Arrays, results: Arrays) -> None:
        """Read `feeds` and write `results` in place.

        An input is bound again only for another shape, since binding takes longer than copying.
        """
        for name, array in feeds.items():
            bound = self._bound.get(name)
            if bound is not None and bound.shape == array.shape:
                bound[...] = array
            else:
                self._bind(name, array.copy())
        for name, array in results.items():
            self._bind(name, array)
        self._request.infer(share_inputs=True, share_outputs=True)

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        self._request.set_tensor(self.ports[name], ov.Tensor(array, shared_memory=True))
        self._bound[name] = array  # the plugin uses it until the next one is bound

    def output(self, name: str) -> Logits:
        """Return a view of another result of the last run, valid until the next."""
        found: Logits = self._request.get_tensor(self.ports[name]).data
        return found


def paged_arrays(batch: Batch) -> dict[str, NDArray[Any]]:
    """Return the inputs of paged attention by name."""
    bias, bias_begins = batch.bias()
    found = {
        "past_lens": batch.past,
        "subsequence_begins": batch.begins,
        "block_indices": batch.table,
        "block_indices_begins": batch.table_begins,
        "max_context_len": np.asarray(batch.longest),
        "qq_bias_begins": bias_begins,
    }
    return {name: array.astype(np.int32) for name, array in found.items()} | {"qq_bias": bias}
