"""Hidden states of several layers of the frozen target: mapped from disk, or computed when needed.

Unlike `features`, every position of a document is there, since a drafter's layer attends to all of
them. Of each position the file has the inputs of the chosen layers and, at the end, what the LM
head reads, in the target's type.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from specpipe.core.artifacts import digest_json
from specpipe.train.features import pad
from specpipe.train.placement import HERE, TrainingPlace
from specpipe.train.state_file import StateFile
from specpipe.train.target import CPU, DTYPES, Target, base_outputs
from specpipe.train.text import Document, head_labels

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class TaughtDocument:
    """A document with what the target computes of it."""

    tokens: torch.Tensor  # [T]
    inputs: torch.Tensor  # [T, layers * D]  of the chosen layers, before any norm
    last: torch.Tensor  # [T, D]  what the LM head reads
    labels: torch.Tensor  # [T, steps]  step s: the token t + 2 + s; -1: nothing to draft there


class LayerSource(Protocol):
    """Where the states of a training's documents come from."""

    @property
    def documents(self) -> tuple[Document, ...]:
        """All documents, in order."""
        ...

    def document(self, number: int, steps: int, device: torch.device = CPU) -> TaughtDocument:
        """Return one document in float32, with labels for `steps` draft steps."""
        ...


@dataclass(frozen=True, eq=False)
class LayerStates:
    """The states of all documents, on the disk."""

    documents: tuple[Document, ...]
    states: torch.Tensor  # [N, (layers + 1) * D]  mapped
    begins: tuple[int, ...]  # the first row of every document
    width: int  # D

    def document(self, number: int, steps: int, device: torch.device = CPU) -> TaughtDocument:
        """Return one document in float32, with labels for `steps` draft steps."""
        document, begin = self.documents[number], self.begins[number]
        rows = self.states[begin : begin + len(document)]
        return _taught(document, rows, self.width, steps, device)


@dataclass(frozen=True, eq=False)
class StreamedLayerStates:
    """The states of a document are computed whenever it is learned."""

    target: Target
    documents: tuple[Document, ...]
    layers: Sequence[int]

    def document(self, number: int, steps: int, device: torch.device = CPU) -> TaughtDocument:
        """Return one document in float32, with labels for `steps` draft steps."""
        document = self.documents[number]
        (rows,) = _states(self.target, [document], self.layers)
        return _taught(document, rows, int(self.target.output.shape[1]), steps, device)


def _taught(
    document: Document, rows: torch.Tensor, width: int, steps: int, device: torch.device
) -> TaughtDocument:
    rows = rows.to(device).float()
    return TaughtDocument(
        torch.from_numpy(document.tokens).to(device),
        rows[:, :-width],
        rows[:, -width:],
        torch.from_numpy(head_labels(document, steps)).to(device),
    )


def read_layer_states(
    target: Target,
    documents: Sequence[Document],
    layers: Sequence[int],
    folder: Path,
    *,
    progress: Progress,
    placement: TrainingPlace = HERE,
) -> LayerStates:
    """Return the states of `documents`; the inputs of `layers`, counted from 0.

    They are kept in `folder` as layers-<key>.bin, keyed by model, layers and text; a rerun maps
    that file. Its name appears only when it is whole; a killed run resumes. Raises StageFailed if
    the disk has no room.
    """
    key = digest_json([target.digest, target.dtype, [*layers], [d.digest() for d in documents]])
    file, width = folder / f"layers-{key[:16]}.bin", int(target.output.shape[1])
    columns = (len(layers) + 1) * width
    lengths = [len(document) for document in documents]
    sizes = [length * columns * DTYPES[target.dtype].itemsize for length in lengths]

    def compute(chosen: Sequence[int]) -> Iterator[bytes]:
        return _rows(target, [documents[i] for i in chosen], layers)

    StateFile(file, sizes, lengths, compute, placement).require(progress)
    begins = np.cumsum([0, *map(len, documents)]).tolist()
    count = begins.pop()
    states = torch.from_file(str(file), size=count * columns, dtype=DTYPES[target.dtype])
    return LayerStates(tuple(documents), states.view(count, columns), tuple(begins), width)


def _rows(target: Target, documents: Sequence[Document], layers: Sequence[int]) -> Iterator[bytes]:
    """Yield the states of each document."""
    for row, document in zip(_states(target, documents, layers), documents, strict=True):
        kept = row[: len(document)].contiguous().cpu()
        yield kept.view(torch.uint8).numpy().tobytes()


@torch.no_grad()
def _states(target: Target, documents: Sequence[Document], layers: Sequence[int]) -> torch.Tensor:
    """Return [B, T, (layers + 1) * D] of a batch, on one device; layers may be on several."""
    found = base_outputs(target.model, *pad(documents), output_hidden_states=True)
    last = found.last_hidden_state
    return torch.cat([*(found.hidden_states[i].to(last.device) for i in layers), last], -1)
