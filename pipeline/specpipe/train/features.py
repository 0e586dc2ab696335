"""The frozen target's hidden states, computed once and mapped from disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from specpipe.core.artifacts import digest_json
from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError
from specpipe.train.target import Target
from specpipe.train.text import Document, spoken_after

Progress = Callable[[int, int], None]
_BATCH = 8  # documents evaluated together; part of no key: the files are equal up to rounding


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


def read_features(
    target: Target,
    documents: Sequence[Document],
    guesses: int,
    folder: Path,
    *,
    progress: Progress,
) -> Features:
    """Return the features of `documents`, at every position where the first guess has a label.

    The hidden states are kept in `folder` as features-<key>.f16, keyed by model and text; a rerun
    maps that file. Its name appears only when it is whole. Raises ConfigError if there are none.
    """
    spoken = [spoken_after(document, guesses) for document in documents]
    kept = [rows[:, 1] >= 0 for rows in spoken]
    count, width = int(sum(k.sum() for k in kept)), int(target.output.shape[1])
    if count == 0:
        raise ConfigError(
            "no position of the text has a label for the first draft token",
            hint="answers must be at least two tokens long; raise train.sequence_length",
        )
    key = digest_json([target.digest, target.dtype, [d.digest() for d in documents]])
    file = folder / f"features-{key[:16]}.f16"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write(target, documents, kept, file, progress)
    hidden = np.memmap(file, np.float16, "r", shape=(count, width))
    rows = np.concatenate([r[k] for r, k in zip(spoken, kept, strict=True)])
    return Features(hidden, rows, _stretches(kept))


def _stretches(kept: Sequence[NDArray[np.bool_]]) -> Ints:
    """Number the unbroken stretches of kept positions; one ends where its document does."""
    begins = [np.diff(k, prepend=False) & k for k in kept]
    numbers: Ints = np.cumsum(np.concatenate(begins))
    return numbers[np.concatenate(kept)]


def _write(
    target: Target,
    documents: Sequence[Document],
    kept: Sequence[NDArray[np.bool_]],
    file: Path,
    progress: Progress,
) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as out:
        for begin in range(0, len(documents), _BATCH):
            group = documents[begin : begin + _BATCH]
            states = target.hidden(*pad(group)).to(torch.float16).numpy()
            for row, keep in zip(states, kept[begin : begin + _BATCH], strict=True):
                out.write(row[: len(keep)][keep].tobytes())
            progress(begin + len(group), len(documents))
    temporary.replace(file)


def pad(documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask of a batch, [B, T] each, filled up on the right with 0."""
    width = max(map(len, documents))
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    mask = torch.zeros((len(documents), width), dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.from_numpy(document.tokens)
        mask[row, : len(document)] = 1
    return ids, mask
