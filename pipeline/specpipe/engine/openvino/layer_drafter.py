"""An EAGLE-3 drafter in memory: its own paged KV cache, and predictions for many sequences.

Row i of a drafter's cache has the hidden states of the target's row i and the token after it. So
its rows are found by the sequence without the first token, and the cache follows the sequence as
that of the target does, with prefixes of its own. The hidden states of all kept rows are in the
target's storage. Missing rows are computed from them: those of a prompt, of accepted tokens, and of
a prefix that only the target had.

The rows of draft tokens are computed again for every level of a tree, since paged attention shows
all cached rows to every row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov

from specpipe.core.contracts import ROOT, Extensions, Ints, Logits
from specpipe.core.drafters import Eagle3Drafter
from specpipe.core.engines import Branch, PoolFull
from specpipe.engine.openvino.batch import Part, lay_out
from specpipe.engine.openvino.blocks import BlockCache, BlockPool
from specpipe.engine.openvino.calls import CompiledCall, paged_arrays
from specpipe.engine.openvino.checks import InvalidBatch, check_batch, check_parts
from specpipe.engine.openvino.rope import rope_inputs
from specpipe.engine.openvino.storage import KVStorage

CHUNK = 512  # rows of a prompt in one call
_NOTHING: Ints = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of one sequence in a call: its pending ones, then the nodes of the draft."""

    part: Part
    features: Logits  # [n, D]
    pending: int


class LayerDrafter:
    """See the module."""

    def __init__(
        self,
        network: ov.CompiledModel,
        drafter: Eagle3Drafter,
        target: KVStorage,
        vocab_size: int,
        max_seq_len: int,
    ) -> None:
        """Reserve a pool of as many blocks as that of `target`, and bind it to the graph."""
        self._target, self._vocab_size = target, vocab_size
        self._width = drafter.net.hidden_size
        self._rope = rope_inputs(drafter.net, max_seq_len)
        self._last_position = max_seq_len - 1
        self._storage = KVStorage(drafter.net, target.blocks, ov.Type.f32)
        self.pool = BlockPool(target.blocks, self._storage)
        self._call = CompiledCall(network, self._storage)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """See `LoadedEngine`. Raises InvalidBatch for a draft that does not fit its sequence."""
        rows = [self._rows(branch) for branch in branches]
        parts = [one.part for one in rows]
        check_parts(parts, self._vocab_size)
        self._reserve(parts)
        found = self._run(parts, np.concatenate([one.features for one in rows]))
        for one in rows:
            one.part.cache.written(one.part.tokens)
            one.part.cache.keep(np.arange(one.pending))
        ends = np.cumsum([len(part.wanted) for part in parts])[:-1]
        pieces = [np.split(array, ends) for array in found]
        return [Extensions(*piece) for piece in zip(*pieces, strict=True)]

    def _rows(self, branch: Branch) -> _Rows:
        target = branch.cache
        if not isinstance(target, BlockCache) or not target.length:
            raise InvalidBatch("the drafter needs kept rows of this engine")
        cache, pending = self._follow(target, branch)
        count, first = len(pending), cache.length
        features = self._target.features(target.kept_slots(first, first + count))
        hung = np.where(branch.draft.parents == ROOT, count - 1, branch.draft.parents + count)
        rows = np.where(branch.wanted == ROOT, count - 1, branch.wanted + count)
        part = Part(
            cache,
            np.concatenate([pending, branch.draft.tokens]),
            np.concatenate([np.arange(-1, count - 1), hung]),
            rows,
        )
        return _Rows(part, np.stack([*features, *branch.states]), count)

    def _follow(self, target: BlockCache, branch: Branch) -> tuple[BlockCache, Ints]:
        """Return the drafter's cache of a sequence, and its tokens that have no rows there.

        The row of the root is computed again if it is wanted. Of long texts all but the end are
        computed here.
        """
        tokens = [*target.tokens[1:], branch.root]
        if target.beside is None:
            target.beside = self.pool.open(tokens, f"{target.tokens[0]} {target.salt}")
        cache = target.beside
        most = len(tokens) - bool((branch.wanted == ROOT).any())
        cache.truncate(_common(cache.tokens[:most], tokens))
        pending = np.array(tokens[cache.length :], np.int64)
        while len(pending) > CHUNK:
            self._read(target, cache, pending[:CHUNK])
            pending = pending[CHUNK:]
        return cache, pending

    def _read(self, target: BlockCache, cache: BlockCache, tokens: Ints) -> None:
        """Compute the next rows of a text, of which no prediction is wanted."""
        part = Part(cache, tokens, None, _NOTHING)
        self._reserve([part])
        slots = target.kept_slots(cache.length, cache.length + len(tokens))
        self._run([part], self._target.features(slots))
        cache.written(tokens)
        cache.keep(np.arange(len(tokens)))

    def _reserve(self, parts: Sequence[Part]) -> None:
        needs = [(part.cache, len(part.tokens)) for part in parts]
        if not self.pool.fits(needs):
            raise PoolFull(f"the drafter's KV pool has no room for {len(parts)} drafts")
        for cache, rows in needs:
            self.pool.reserve(cache, rows)

    def _run(self, parts: Sequence[Part], features: Logits) -> tuple[Ints, Logits, Logits]:
        """Return tokens and probabilities [R, WIDTH], and states [R, D], of the wanted rows."""
        batch = lay_out(parts)
        check_batch(batch, parts, self._storage.blocks, 1)
        positions = np.minimum(batch.positions, self._last_position)
        count = len(batch.wanted)
        wanted = batch.wanted if count else np.zeros(1, np.int64)
        feeds = {
            "tokens": batch.tokens,
            "rows": wanted,
            "features": features,
            **{name: table[positions][None, :, None] for name, table in self._rope.items()},
            **paged_arrays(batch),
        }
        best, probs, states = self._call.run(feeds, len(wanted), ("predicted", "probs", "states"))
        return best[:count].astype(np.int64), probs[:count].astype(np.float64), states[:count]


def _common(kept: Sequence[int], tokens: Sequence[int]) -> int:
    if list(kept) == tokens[: len(kept)]:
        return len(kept)
    pairs = enumerate(zip(kept, tokens, strict=False))
    return next(place for place, (a, b) in pairs if a != b)
