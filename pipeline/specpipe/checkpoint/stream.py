"""Streams one tensor to the files of all ranks: read in blocks of rows, joined, cast and split.

Memory holds one block and its parts, whatever the size of the tensor. Only a plan whose sources
must be computed with as a whole (`TensorPlan.join`) needs room for all of them; stacked experts are
computed one by one.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import TensorPlan
from specpipe.checkpoint.finite import require_finite
from specpipe.checkpoint.shard import Cut
from specpipe.checkpoint.source import TensorReader
from specpipe.checkpoint.writer import Sink
from specpipe.core.errors import first_few

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 1 << 22  # fits in the processor's cache, so that digest and write need no memory


def write_parts(
    reader: TensorReader, plan: TensorPlan, dtype: str, parts: Sequence[tuple[Cut, Sink]]
) -> None:
    """Write the parts of one planned tensor, each to its sink, in one pass over the sources.

    Raises ConfigError for values that are not numbers, or that `dtype` cannot hold.
    """
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    if _is_stacked(plan):
        parts = [(cut.flat(plan.shape), sink) for cut, sink in parts]
    row = 0
    for name, block in _blocks(reader, plan):
        cast = block.to(kind)
        require_finite(name, block, cast)
        for cut, sink in parts:
            for part in _select(cast, row, cut):
                sink.write(part)
        row += len(block)
    for cut, sink in parts:
        for padding in _padding(cut, row, kind):
            sink.write(padding)


def _blocks(reader: TensorReader, plan: TensorPlan) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield the rows of the joined tensor from first to last, with the name of what they are of."""
    for part in plan.slices:
        yield first_few(part.sources), _joined(reader, part)[None]
    if plan.join:
        joined = _joined(reader, plan)
        for begin, end in row_steps(plan.shape):
            yield first_few(plan.sources), joined[begin:end]
    if plan.join or plan.slices:
        return
    for name in plan.sources:
        for begin, end in row_steps(reader.shape(name)):
            yield name, reader.rows(name, begin, end)


def assembled(plan: TensorPlan, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Return the tensor that a plan without slices makes of all its sources at once."""
    import torch

    joined = plan.join(sources) if plan.join else torch.cat(list(sources))
    return joined.reshape(plan.shape)


def _joined(reader: TensorReader, plan: TensorPlan) -> "torch.Tensor":
    sources = []
    for name in plan.sources:
        source = reader.read(name)
        require_finite(name, source, source)
        sources.append(source)
    return assembled(plan, sources)


def _is_stacked(plan: TensorPlan) -> bool:
    """Tell whether the sources are slices of the tensor: their rows are its second index."""
    made = plan.join or plan.slices
    return not made and len(plan.shape) > len(plan.source_shapes[0])


def row_steps(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last row, exclusive, of every block of a tensor."""
    step = _rows_a_block(shape)
    for begin in range(0, shape[0], step):
        yield begin, min(begin + step, shape[0])


def _rows_a_block(shape: tuple[int, ...]) -> int:
    row = 4  # bytes of the widest element that is read
    for size in shape[1:]:
        row *= size
    return max(1, BLOCK_BYTES // max(row, 1))


def _select(block: "torch.Tensor", first: int, cut: Cut) -> "Iterator[torch.Tensor]":
    """Yield what a cut takes from the block whose first row is row `first` of the tensor."""
    for begin, end in cut.ranges[0]:
        low, high = max(begin - first, 0), min(end - first, len(block))
        if low < high:
            yield _inner(block[low:high], cut)


def _inner(rows: "torch.Tensor", cut: Cut) -> "torch.Tensor":
    import torch

    for dim, ranges in enumerate(cut.ranges[1:], start=1):
        taken = [rows.narrow(dim, begin, end - begin) for begin, end in ranges]
        rows = taken[0] if len(taken) == 1 else torch.cat(taken, dim)
    return rows


def _padding(cut: Cut, rows: int, kind: "torch.dtype") -> "Iterator[torch.Tensor]":
    import torch

    for begin, end in cut.ranges[0]:
        missing = end - max(begin, rows)
        if missing > 0:
            yield torch.zeros((missing, *cut.shape[1:]), dtype=kind)
