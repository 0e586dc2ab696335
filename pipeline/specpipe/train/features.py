"""The frozen target's hidden states: mapped from disk, or computed for the documents of a batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from specpipe.core.artifacts import digest_json
from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError
from specpipe.train.placement import HERE, TrainingPlace
from specpipe.train.state_file import StateFile
from specpipe.train.target import Target
from specpipe.train.text import Bools, Document, spoken_after

Progress = Callable[[int, int], None]
_ROW = np.dtype(np.float16)


@dataclass(frozen=True, eq=False)
class Features:
    """Positions at which heads learn: what they see, and what they should say."""

    hidden: NDArray[np.float16]  # [N, D]  last hidden state, after the final norm; mapped
    spoken: Ints  # [N, 1 + guesses]  the tokens after it; -1: nothing to say
    run: Ints  # [N]  which unbroken stretch of positions a row is of; rows of one are neighbours

    def __len__(self) -> int:
        return len(self.spoken)

    def ahead(self, rows: Ints, guess: int) -> Ints:
        """Return the row of the position whose next token is what `guess` of each row is of.

        -1: that position is not among the features.
        """
        there = np.minimum(rows + 1 + guess, len(self) - 1)
        same = (self.run[there] == self.run[rows]) & (there == rows + 1 + guess)
        return np.where(same, there, -1)


@dataclass(frozen=True, eq=False)
class Positions:
    """The positions of documents at which heads learn, without their hidden states."""

    spoken: tuple[Ints, ...]  # documents x [n, 1 + guesses]
    kept: tuple[Bools, ...]  # documents x [n]  where the first guess has a label

    @property
    def count(self) -> int:
        """How many positions are kept."""
        return int(sum(kept.sum() for kept in self.kept))

    def labels(self) -> Ints:
        """Return the tokens after every kept position: [N, 1 + guesses]."""
        return np.concatenate([r[k] for r, k in zip(self.spoken, self.kept, strict=True)])


def positions_of(documents: Sequence[Document], guesses: int) -> Positions:
    """Return the positions where the first guess has a label; raise ConfigError without any."""
    spoken = tuple(spoken_after(document, guesses) for document in documents)
    found = Positions(spoken, tuple(rows[:, 1] >= 0 for rows in spoken))
    if found.count == 0:
        raise ConfigError(
            "no position of the text has a label for the first draft token",
            hint="answers must be at least two tokens long; raise train.sequence_length",
        )
    return found


def compute_features(target: Target, documents: Sequence[Document], guesses: int) -> Features:
    """Return the features of a few documents, in memory; there may be none."""
    spoken = [spoken_after(document, guesses) for document in documents]
    kept = [rows[:, 1] >= 0 for rows in spoken]
    hidden = np.concatenate(list(_states(target, documents, kept)))
    labels = np.concatenate([r[k] for r, k in zip(spoken, kept, strict=True)])
    return Features(hidden, labels, _stretches(kept))


def read_features(
    target: Target,
    documents: Sequence[Document],
    guesses: int,
    folder: Path,
    *,
    progress: Progress,
    placement: TrainingPlace = HERE,
) -> Features:
    """Return the features of `documents`, at every position where the first guess has a label.

    The hidden states are kept in `folder` as features-<key>.f16, keyed by model and text; a rerun
    maps that file. Its name appears only when it is whole; a killed run resumes. Raises
    ConfigError if there are none, StageFailed if the disk has no room.
    """
    found = positions_of(documents, guesses)
    count, width = found.count, int(target.output.shape[1])
    key = digest_json([target.digest, target.dtype, [d.digest() for d in documents]])
    file = folder / f"features-{key[:16]}.f16"
    sizes = [int(kept.sum()) * width * _ROW.itemsize for kept in found.kept]

    def compute(chosen: Sequence[int]) -> Iterator[bytes]:
        kept = [found.kept[i] for i in chosen]
        states = _states(target, [documents[i] for i in chosen], kept)
        return (rows.tobytes() for rows in states)

    lengths = [len(document) for document in documents]
    StateFile(file, sizes, lengths, compute, placement).require(progress)
    hidden = np.memmap(file, np.float16, "r", shape=(count, width))
    return Features(hidden, found.labels(), _stretches(found.kept))


def _stretches(kept: Sequence[Bools]) -> Ints:
    """Number the unbroken stretches of kept positions; one ends where its document does."""
    begins = [np.diff(k, prepend=False) & k for k in kept]
    numbers: Ints = np.cumsum(np.concatenate(begins))
    return numbers[np.concatenate(kept)]


def _states(
    target: Target, documents: Sequence[Document], kept: Sequence[Bools]
) -> Iterator[NDArray[np.float16]]:
    """Yield the hidden states of each document's kept positions: [n, D]."""
    states = target.hidden(*pad(documents)).to(torch.float16).cpu().numpy()
    for row, keep in zip(states, kept, strict=True):
        yield row[: len(keep)][keep]


def rows_where(states: torch.Tensor, marks: Sequence[Bools]) -> torch.Tensor:
    """Return the rows of states [B, T, D] that are marked, one array of marks per sequence."""
    width = states.shape[1]
    found = [i * width + np.flatnonzero(row) for i, row in enumerate(marks)]
    return states.flatten(0, 1)[torch.from_numpy(np.concatenate(found)).to(states.device)]


def pad(documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask of a batch, [B, T] each, filled up on the right with 0."""
    width = max(map(len, documents))
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    mask = torch.zeros((len(documents), width), dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.tokens)
        mask[row, : len(document)] = 1
    return ids, mask
