"""Which part of a whole tensor each rank holds: ranges of indices, computed without a tensor."""

from dataclasses import dataclass

Range = tuple[int, int]  # [begin, end)


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that one rank holds: some ranges of each dimension, in rising order.

    A range of dimension 0 that lies beyond the tensor's end is padding: zeros.
    """

    ranges: tuple[tuple[Range, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the part."""
        return tuple(sum(end - begin for begin, end in dim) for dim in self.ranges)


def whole(shape: tuple[int, ...]) -> Cut:
    """Return the cut that leaves a tensor as it is."""
    return Cut(tuple(((0, size),) for size in shape))
