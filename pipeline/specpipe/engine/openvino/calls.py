"""One compiled graph, with its KV pool if it has one, and the inputs of paged attention."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specpipe.engine.openvino.batch import Batch
from specpipe.engine.openvino.storage import KVStorage

Arrays = Mapping[str, NDArray[Any]]


@dataclass
class _Result:
    """The array that the network writes a result into."""

    array: NDArray[Any]
    references: int = 0  # to the array, if nobody else holds it


class CompiledCall:
    """The only request of a compiled network."""

    def __init__(self, network: ov.CompiledModel, storage: KVStorage | None = None) -> None:
        """Bind the caches of all layers, if the network has any."""
        self._request = network.create_infer_request()
        self.ports = {port.get_any_name(): port for port in (*network.inputs, *network.outputs)}
        self._inputs: dict[str, NDArray[Any]] = {}
        self._constants: dict[str, NDArray[Any]] = {}  # what the inputs are copies of
        self._results: dict[str, _Result] = {}
        for i, tensor in enumerate(storage.tensors() if storage else ()):
            name = f"{'value' if i % 2 else 'key'}_cache.{i // 2}"
            self._request.set_tensor(self.ports[name], tensor)

    def run(self, feeds: Arrays, rows: int, results: Sequence[str]) -> list[NDArray[Any]]:
        """Read `feeds` and return `results`, each of `rows` rows; `output` returns the others.

        Binding takes longer than copying. So an input is bound again only for another shape, and a
        result also if somebody still holds the array of an earlier run.
        """
        for name, array in feeds.items():
            self._feed(name, array)
        found = [self._room(name, rows) for name in results]
        self._request.infer(share_inputs=True, share_outputs=True)
        return found

    def output(self, name: str) -> NDArray[Any]:
        """Return a view of another result of the last run, valid until the next."""
        found: NDArray[Any] = self._request.get_tensor(self.ports[name]).data
        return found

    def _feed(self, name: str, array: NDArray[Any]) -> None:
        """Copy an array to where the network reads it, unless it lies there already."""
        bound = self._inputs.get(name)
        if bound is None or bound.shape != array.shape:
            bound = np.empty(array.shape, self._kind(name))
            self._bind(name, bound)
            self._inputs[name] = bound
        elif self._constants.get(name) is array:
            return
        bound[...] = array
        if array.flags.writeable:
            self._constants.pop(name, None)
        else:
            self._constants[name] = array

    def _room(self, name: str, rows: int) -> NDArray[Any]:
        """Return the array of a result, which nobody else holds."""
        known = self._results.get(name)
        if (
            known is None
            or len(known.array) != rows
            or sys.getrefcount(known.array) > known.references
        ):
            shape = [size.get_length() for size in [*self.ports[name].partial_shape][1:]]
            known = self._results[name] = _Result(np.empty((rows, *shape), self._kind(name)))
            self._bind(name, known.array)
            known.references = sys.getrefcount(known.array)
        return known.array

    def _kind(self, name: str) -> np.dtype[Any]:
        kind: np.dtype[Any] = self.ports[name].get_element_type().to_dtype()
        return kind

    def _bind(self, name: str, array: NDArray[Any]) -> None:
        self._request.set_tensor(self.ports[name], ov.Tensor(array, shared_memory=True))


def paged_arrays(batch: Batch) -> dict[str, NDArray[Any]]:
    """Return the inputs of paged attention by name."""
    bias, bias_begins = batch.bias()
    return {
        "past_lens": batch.past,
        "subsequence_begins": batch.begins,
        "block_indices": batch.table,
        "block_indices_begins": batch.table_begins,
        "max_context_len": np.asarray(batch.longest),
        "qq_bias_begins": bias_begins,
        "qq_bias": bias,
    }
