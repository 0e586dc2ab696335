"""Where the batches of a drafter's training come from: hidden states on disk, or computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from specpipe.core.contracts import Ints
from specpipe.train.features import Features, compute_features
from specpipe.train.loop import batch_of, steps_per_epoch
from specpipe.train.target import Target
from specpipe.train.text import Document, documents_a_step


class FeatureSource(Protocol):
    """Where the batches of a training come from."""

    @property
    def steps(self) -> int:
        """How many batches see everything once."""
        ...

    def batch(self, step: int) -> tuple[Features, Ints]:
        """Return features, and which of their rows a step learns from."""
        ...


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Batches of positions, of all documents, whose hidden states are on disk."""

    features: Features
    size: int  # positions of a batch
    seed: int

    @property
    def steps(self) -> int:
        """How many batches see everything once."""
        return steps_per_epoch(self.size, len(self.features))

    def batch(self, step: int) -> tuple[Features, Ints]:
        """Return all features, and the rows of a step, rising."""
        return self.features, np.sort(batch_of(step, self.size, len(self.features), self.seed))


@dataclass(frozen=True, eq=False)
class StreamedFeatures:
    """Batches of whole documents, whose hidden states are computed when they are needed.

    Nothing is on disk; every epoch runs the target again.
    """

    target: Target
    documents: Sequence[Document]
    guesses: int
    tokens: int  # of a batch, about
    seed: int

    @property
    def steps(self) -> int:
        """How many batches see everything once."""
        return steps_per_epoch(self._size, len(self.documents))

    @property
    def _size(self) -> int:
        return documents_a_step(self.documents, self.tokens)

    def batch(self, step: int) -> tuple[Features, Ints]:
        """Return the features of a step's documents, and all of their rows."""
        chosen = batch_of(step, self._size, len(self.documents), self.seed)
        found = compute_features(self.target, [self.documents[i] for i in chosen], self.guesses)
        return found, np.arange(len(found))
