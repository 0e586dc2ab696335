"""Does the deployment fit, how is the KV cache shared out, and how large could it be.

All engines of a run lie on the same GPUs. A KV cache takes a share of what is free *after its
engine was loaded* (`kv_cache_free_gpu_mem_fraction`), so with two engines the split would depend on
which loads first; a number of tokens for each (`max_tokens_in_paged_kv_cache`) does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specpipe.building import Footprint
from specpipe.contracts import Role

RESERVE = 0.05  # of the memory stays free
KV_SHARE = 0.9  # of what is free after the engines; the rest is for the decoder's own buffers
_BLOCK = 64  # a multiple of every release's tokens_per_block
Fits = Callable[[int], bool]


@dataclass(frozen=True)
class KvBudget:
    """The room of one engine's KV cache on each GPU."""

    tokens: int  # of all sequences together
    fraction: float  # of what is free after loading; an upper bound where there are two engines


@dataclass(frozen=True)
class Largest:
    """What else would fit, one thing changed at a time; 0: nothing does."""

    batch_size: int  # at the asked length
    seq_len: int  # at the asked batch


@dataclass(frozen=True)
class Memory:
    """What the deployment takes on the machine (each GPU), against what there is; in bytes."""

    footprints: Mapping[Role, Footprint]
    available: int
    kv: Mapping[Role, KvBudget]  # on GPUs; a CPU's caches are allocated one by one
    largest: Largest | None = None

    @property
    def needed(self) -> Mapping[Role, int]:
        """What each engine takes, with the KV cache that was asked for."""
        return {role: footprint.total for role, footprint in self.footprints.items()}

    @property
    def total(self) -> int:
        """Sum over the engines."""
        return sum(self.needed.values())

    @property
    def caches(self) -> int:
        """What the KV caches of all sequences take."""
        return sum(part.kv_per_token * part.kv_tokens for part in self.footprints.values())

    @property
    def usable(self) -> int:
        """What may be taken."""
        return int(self.available * (1 - RESERVE))

    @property
    def fits(self) -> bool:
        """Whether everything has room, on a GPU in the caches' share of what the engines leave."""
        share = KV_SHARE if self.kv else 1.0
        fixed = sum(part.fixed for part in self.footprints.values())
        return fixed + self.caches / share <= self.usable


def plan_memory(
    footprints: Mapping[Role, Footprint], available: int, *, on_gpu: bool = True
) -> Memory:
    """Return the memory of a deployment, on GPUs with its KV caches given what the engines leave.

    Engines of one run cache the same sequences, so each gets room for as many tokens.
    """
    if not on_gpu:
        return Memory(footprints, available, {})
    free = available * (1 - RESERVE) - sum(f.fixed for f in footprints.values())
    row = sum(f.kv_per_token for f in footprints.values())
    tokens = max(0, int(KV_SHARE * free / row)) if row else 0
    budget = KvBudget(tokens - tokens % _BLOCK, KV_SHARE)
    return Memory(footprints, available, dict.fromkeys(footprints, budget))


def largest(fits: Fits, most: int) -> int:
    """Return the largest number up to `most` that fits; 0 if not even 1 does.

    What fits must fit with less as well.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
