"""Check whether a deployment fits, divide the KV cache, and find the largest sizes.

All engines of a run are on the same GPUs. A KV cache takes a share of the memory that is free
*after its engine was loaded* (`kv_cache_free_gpu_mem_fraction`). With two engines that split would
depend on which engine loads first. So the plan gives each cache a number of tokens
(`max_tokens_in_paged_kv_cache`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from specpipe.core.contracts import Role
from specpipe.core.upstream import KV_BLOCK
from specpipe.engine.backend import Footprint

RESERVE = 0.05  # share of the memory that stays free
KV_SHARE = 0.9  # of the memory left after loading; the rest is for the decoder's buffers
Fits = Callable[[int], bool]


@dataclass(frozen=True)
class KvBudget:
    """The room of one engine's KV cache on each GPU."""

    tokens: int  # of all sequences together
    fraction: float  # of the memory left after loading; an upper bound if there are two engines


@dataclass(frozen=True)
class Largest:
    """The largest batch and length that fit, each with the other unchanged; 0: none fits."""

    batch_size: int  # at the configured length
    seq_len: int  # at the configured batch size


@dataclass(frozen=True)
class Memory:
    """The memory that a deployment needs and that is available, in bytes (on each GPU)."""

    footprints: Mapping[Role, Footprint]
    available: int
    kv: Mapping[Role, KvBudget]  # on GPUs; the CPU engine allocates each cache when it is needed
    largest: Largest | None = None

    @property
    def needed(self) -> Mapping[Role, int]:
        """The memory of each engine, with the KV cache of the configured limits."""
        return {role: footprint.total for role, footprint in self.footprints.items()}

    @property
    def total(self) -> int:
        """Sum over the engines."""
        return sum(self.needed.values())

    @property
    def caches(self) -> int:
        """The memory of the KV caches of all sequences."""
        return sum(part.kv_per_token * part.kv_tokens for part in self.footprints.values())

    @property
    def usable(self) -> int:
        """The memory that the deployment may use."""
        return int(self.available * (1 - RESERVE))

    @property
    def fits(self) -> bool:
        """Whether the engines fit, and their caches fit into their share of the rest (on GPUs)."""
        share = KV_SHARE if self.kv else 1.0
        fixed = sum(part.fixed for part in self.footprints.values())
        return fixed + self.caches / share <= self.usable


def plan_memory(
    footprints: Mapping[Role, Footprint], available: int, *, on_gpu: bool = True
) -> Memory:
    """Return the memory of a deployment; on GPUs the KV caches get what the engines leave.

    Engines of one run cache the same sequences, so each cache holds the same number of tokens.
    """
    if not on_gpu:
        return Memory(footprints, available, {})
    free = available * (1 - RESERVE) - sum(f.fixed for f in footprints.values())
    row = sum(f.kv_per_token for f in footprints.values())
    tokens = max(0, int(KV_SHARE * free / row)) if row else 0
    budget = KvBudget(tokens - tokens % KV_BLOCK, KV_SHARE)
    return Memory(footprints, available, dict.fromkeys(footprints, budget))


def largest(fits: Fits, most: int) -> int:
    """Return the largest number up to `most` that fits; 0 if not even 1 does.

    If a number fits, all smaller numbers must fit too.
    """
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
