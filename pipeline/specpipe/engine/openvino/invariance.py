"""Calls whose rows have the same bits as in any other call.

The CPU plugin multiplies matrices by other kernels if there are few or many rows, and their sums
round differently. The limits depend on CPU, precision and layer sizes: on a CPU with only AVX2,
16-bit and quantized weights have another kernel above 80 rows, and wide quantized layers below 5.
So a batch-invariant engine finds them when it is loaded, and keeps every call between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specpipe.core.contracts import Logits
from specpipe.engine.openvino.batch import Part

_REFERENCE = 16  # rows whose bits the others are compared with
_FEW = (8, 5, 4, 3, 2, 1)
_MANY = (32, 64, 80, 128, 256)


@dataclass(frozen=True)
class RowLimits:
    """The numbers of rows of a call for which all rows have the same bits."""

    least: int  # a call with fewer rows is padded
    most: int  # a step with more rows takes several calls


def find_limits(rows_of: Callable[[int], Logits], longest: int) -> RowLimits:
    """Return the limits, from the logits [n, V] of the first n rows of one text.

    The text has at most `longest` rows.
    """
    reference = rows_of(min(_REFERENCE, longest))

    def exact(count: int) -> bool:
        rows = rows_of(count)
        shared = min(len(rows), len(reference))
        return np.array_equal(rows[:shared], reference[:shared])

    least = most = len(reference)
    for count in _FEW:
        if count >= longest or not exact(count):
            break
        least = count
    for count in _MANY:
        if count > longest or not exact(count):
            break
        most = count
    return RowLimits(least, most)


def split(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Return the parts of each call of a step: at most `most` rows in a call.

    A chain is cut into pieces. A larger tree has a call of its own.
    """
    calls: list[list[Part]] = [[]]
    left = most
    for part in parts:
        begin = 0
        while begin < len(part.tokens):
            rest = len(part.tokens) - begin
            if left == 0 or (part.tree is not None and rest > left < most):
                calls.append([])
                left = most
            end = begin + (rest if part.tree is not None else min(rest, left))
            calls[-1].append(part.piece(begin, end))
            left = max(0, left - (end - begin))
            begin = end
    return calls
