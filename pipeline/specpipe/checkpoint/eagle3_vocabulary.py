"""The maps between the vocabulary of an EAGLE-3 drafter and that of its target.

`d2t` [V] has the distance from a draft token's number to the target's id: id = number + d2t[number]
(SafeAILab/EAGLE). `t2d` marks the ids of the target that have a draft token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specpipe.checkpoint.source import TensorReader
from specpipe.core.contracts import Ints


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """Both maps as they are on disk; None: there is none."""

    d2t: Ints | None = None  # [V]
    t2d: NDArray[np.bool_] | None = None  # [ids of the target]

    def defects(self, vocab_size: int) -> Iterator[str]:
        """Yield what is wrong with the maps, for a target with `vocab_size` ids."""
        ids = None if self.d2t is None else self.d2t + np.arange(len(self.d2t))
        if self.d2t is not None and ids is not None:
            yield from self._out_of_bounds(self.d2t, ids, vocab_size)
        if self.t2d is None:
            return
        if len(self.t2d) != vocab_size:
            yield f"t2d has a vocabulary of {len(self.t2d)}, the drafter's is {vocab_size}"
        elif ids is not None:
            marked = np.flatnonzero(self.t2d)
            if len(marked) != len(ids):
                yield f"t2d marks {len(marked)} tokens, d2t has {len(ids)}"
            elif not np.array_equal(marked, np.unique(ids)):
                yield "t2d marks other tokens than those of d2t"

    def _out_of_bounds(self, d2t: Ints, ids: Ints, vocab_size: int) -> Iterator[str]:
        wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if len(wrong):
            at = int(wrong[0])
            yield (
                f"d2t leads draft token {at} to {int(ids[at])}, which is no id below {vocab_size} "
                f"({len(wrong)} such)"
            )
        elif len(np.unique(ids)) != len(ids):
            yield f"d2t leads {len(ids)} draft tokens to {len(np.unique(ids))} ids: some twice"


def read_vocabulary_maps(reader: TensorReader) -> DraftVocabulary:
    """Read `d2t` and `t2d`, as far as they are there."""
    names = reader.names()
    d2t = reader.read("d2t").numpy().astype(np.int64) if "d2t" in names else None
    t2d = reader.read("t2d").numpy().astype(bool) if "t2d" in names else None
    return DraftVocabulary(d2t, t2d)
