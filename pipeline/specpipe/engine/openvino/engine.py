"""A loaded OpenVINO engine: a pool of KV blocks, and steps over many sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from specpipe.core.contracts import Extensions, Guesses, Ints, Logits, Scores
from specpipe.core.engines import Branch, EngineFacts, Item, PoolFull, PoolUsage
from specpipe.core.errors import Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.attention import has_alibi, padded_layers
from specpipe.engine.openvino.batch import Batch, Part, in_single_rows, lay_out
from specpipe.engine.openvino.blocks import BLOCK, BlockCache, BlockPool
from specpipe.engine.openvino.calls import CompiledCall, paged_arrays
from specpipe.engine.openvino.checks import InvalidBatch, check_batch, check_parts
from specpipe.engine.openvino.invariance import RowLimits, find_limits, split
from specpipe.engine.openvino.layer_drafter import LayerDrafter
from specpipe.engine.openvino.masks import padded_arrays
from specpipe.engine.openvino.memory import drop_mapped_pages
from specpipe.engine.openvino.network import masked_windows
from specpipe.engine.openvino.storage import KVStorage

# A chain of at most this number of rows enters attention row by row: of one sequence, of several.
SINGLE_ROWS = (2, 4)
Graph = TypeVar("Graph")


@dataclass(frozen=True, eq=False)
class Graphs:
    """The compiled graphs of an engine, and the files that they were loaded from."""

    network: ov.CompiledModel
    heads: ov.CompiledModel | None
    drafter: ov.CompiledModel | None
    layer: ov.CompiledModel | None  # of an EAGLE-3 drafter
    files: Sequence[Path]


@dataclass(frozen=True)
class PoolOptions:
    """The pool of KV blocks and its use."""

    blocks: int
    kind: ov.Type
    prefix_cache: bool
    batch_invariant: bool


class OpenVinoEngine:
    """See `LoadedEngine`."""

    def __init__(
        self,
        graphs: Graphs,
        model: ModelConfig,
        rope: Mapping[str, Logits],
        max_seq_len: int,
        options: PoolOptions,
    ) -> None:
        """Reserve the pool and bind it to the graph; `rope` as `rope_inputs` returns it."""
        self._graphs, self._model, self._rope = graphs, model, rope
        self._max_seq_len = max_seq_len
        self._least = 2 if options.batch_invariant else 1  # rows of a sequence in attention
        # In bfloat16, both ways through attention take equally long.
        self.single_rows = (0, 0) if options.kind == ov.Type.bf16 else SINGLE_ROWS
        self._storage = KVStorage(model, options.blocks, options.kind)
        self.pool = BlockPool(options.blocks, self._storage, prefix_cache=options.prefix_cache)
        self._padded = np.array(padded_layers(model, max_seq_len), np.int64)
        self._windows = masked_windows(model, max_seq_len)
        self._call = CompiledCall(graphs.network, self._storage)
        self._heads, self._drafter = map(_call_of, (graphs.heads, graphs.drafter))
        self.layer = self._layer_drafter()
        self._limits: RowLimits | None = None
        if options.batch_invariant:
            longest = min(max_seq_len, (options.blocks - 1) * BLOCK)
            self._limits = find_limits(self._first_rows, longest)

    @property
    def facts(self) -> EngineFacts:
        """See `LoadedEngine`."""
        chains_only = self._least > 1
        return EngineFacts(self._model.vocab_size, self._max_seq_len, chains_only)

    @property
    def pool_usage(self) -> PoolUsage:
        """See `LoadedEngine`."""
        pool = self.pool
        return PoolUsage(pool.used + pool.free, pool.used)

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> BlockCache:
        """See `LoadedEngine`."""
        return self.pool.open(tokens, salt)

    def fits(self, items: Sequence[Item]) -> bool:
        """See `LoadedEngine`."""
        return self.pool.fits([self._need(part) for part in map(_part, items)])

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """See `LoadedEngine`. Raises InvalidBatch if the rows of an item are wrong."""
        parts = list(map(_part, items))
        check_parts(parts, self._model.vocab_size)
        needs = [self._need(part) for part in parts]
        if not self.pool.fits(needs):
            raise PoolFull(f"the KV pool has no room for the new rows of {len(parts)} sequences")
        for cache, rows in needs:
            self.pool.reserve(cache, rows)
        calls = [parts] if self._limits is None else split(parts, self._limits.most)
        found = [self._run(call) for call in calls]
        for part in parts:
            part.cache.written(part.tokens)
        scores = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        logits, hidden = scores
        bounds = accumulate((len(part.wanted) for part in parts), initial=0)
        return [Scores(logits[a:b], hidden[a:b]) for a, b in pairwise(bounds)]

    def guess(self, hidden: Logits) -> list[Guesses]:
        """See `LoadedEngine`."""
        heads = _need(self._heads, "Medusa heads")
        tokens, probs = heads.run({"hidden": hidden}, len(hidden), ("tokens", "probs"))
        rows = zip(tokens.astype(np.int64), probs.astype(np.float64), strict=True)
        return [Guesses(*row) for row in rows]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """See `LoadedEngine`."""
        drafter = _need(self._drafter, "ReDrafter")
        feeds: dict[str, NDArray[Any]] = {"hidden": hidden, "states": states, "last": tokens}
        best, probs, after = drafter.run(feeds, len(hidden), ("tokens", "probs", "next_states"))
        return Extensions(best.astype(np.int64), probs.astype(np.float64), after.copy())

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """See `LoadedEngine`."""
        return _need(self.layer, "EAGLE-3 drafter").predict(branches)

    def trim(self) -> None:
        """Drop the mapped weights file from memory; the plugin has copies in its own layout.

        Rows of the embedding are still read from the file, page by page.
        """
        for file in self._graphs.files:
            drop_mapped_pages(file)

    def _layer_drafter(self) -> LayerDrafter | None:
        network, model = self._graphs.layer, self._model
        if network is None or model.eagle3 is None:
            return None
        storage, length = self._storage, self._max_seq_len
        return LayerDrafter(network, model.eagle3, storage, model.vocab_size, length)

    def _need(self, part: Part) -> tuple[BlockCache, int]:
        """Return the rows to reserve: attention may write a single row twice."""
        return part.cache, len(part.tokens) + self._least - 1

    def _first_rows(self, count: int) -> Logits:
        """Return the logits of `count` rows of some text."""
        cache = self.open()
        tokens = np.arange(count) * 7919 % self._model.vocab_size
        (scores,) = self.step([Item(cache, tokens, None, np.arange(count))])
        cache.release()
        return scores.logits

    def _run(self, parts: Sequence[Part]) -> tuple[Logits, Logits]:
        """Return logits [R, V] and hidden states [R, D] of the wanted rows, from one call."""
        parts = self._in_attention(parts)
        batch = lay_out(parts, self._least)
        check_batch(batch, parts, self._storage.blocks, self._least)
        count = len(batch.wanted)
        if self._limits is not None:
            batch = batch.padded(self._limits.least)
        rows, call = batch.scored, self._call
        feeds = {"rows": rows, **self._feeds(batch)}
        logits, hidden = call.run(feeds, len(rows), ("logits", "hidden"))
        if len(self._padded):
            self._storage.write(self._padded, batch.slots, call.output("kv"))
        if "features" in call.ports:
            self._storage.write_features(batch.slots, call.output("features"))
        return logits[:count], hidden[:count].copy()  # which drafters hold until the next step

    def _in_attention(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return the parts as paged attention reads them; padded attention needs whole chains."""
        if self._least > 1 or len(self._padded):
            return parts
        return in_single_rows(parts, self.single_rows[len(parts) > 1])

    def _feeds(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Return the inputs that the graph has, by name, without `rows`."""
        ports = self._call.ports
        # Only scratch nodes can lie beyond the end of the sequence; their position is irrelevant.
        positions = np.minimum(batch.positions, self._max_seq_len - 1)
        feeds: dict[str, NDArray[Any]] = {"tokens": batch.tokens}
        for name, table in self._rope.items():
            if name in ports:
                feeds[name] = table[positions][None, :, None]
        if "positions" in ports:
            feeds["positions"] = positions
        if "past_lens" in ports:
            feeds |= paged_arrays(batch)
        if "spread" in ports:
            feeds["spread"], feeds["back"] = batch.spread, batch.back
        if len(self._padded):
            feeds |= padded_arrays(batch, self._windows, alibi=has_alibi(self._model))
        return feeds


def _call_of(network: ov.CompiledModel | None) -> CompiledCall | None:
    return None if network is None else CompiledCall(network)


def _part(item: Item) -> Part:
    if not isinstance(item.cache, BlockCache):
        raise InvalidBatch("the cache of an item is not of this engine")
    return Part(item.cache, item.tokens, item.parents, item.wanted)


def _need(graph: Graph | None, what: str) -> Graph:
    if graph is None:
        raise Unsupported(
            f"this engine has no {what}",
            hint="name it in the section speculation and run `specpipe build` again",
        )
    return graph
