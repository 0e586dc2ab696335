"""The interface of an engine in memory: its caches, and steps that serve many sequences at once.

Not here: what the algorithms ask; a driver (`runtime.batcher`) turns their asks into these calls.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specpipe.core.contracts import Draft, Extensions, Guesses, Ints, Logits, Scores


class Cache(Protocol):
    """The KV rows of one sequence in an engine's pool."""

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens whose rows are kept."""
        ...

    def keep(self, rows: Ints) -> None:
        """Keep some rows of the last step (ascending indices), after those kept before."""

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on, and those of the last step."""

    def release(self) -> None:
        """Give all blocks back. Full blocks can be found again by their tokens."""


@dataclass(frozen=True, eq=False)
class Item:
    """The part of one sequence in a step: new tokens after the rows that its cache keeps."""

    cache: Cache
    tokens: Ints  # [n]
    parents: Ints | None  # [n]  ROOT: the end of the cache; a parent comes first; None: a chain
    wanted: Ints  # [r]  the rows whose logits and hidden states are returned


@dataclass(frozen=True, eq=False)
class Branch:
    """The draft of one sequence for a one-layer drafter; see `Predict`."""

    cache: Cache  # keeps all tokens but the root
    root: int
    draft: Draft
    states: Sequence[Logits]  # n x [D]
    wanted: Ints  # [B]


class PoolFull(Exception):
    """The KV pool of an engine has no room for the rows of a step."""


@dataclass(frozen=True)
class EngineFacts:
    """What the algorithms know of an engine."""

    vocab_size: int
    max_seq_len: int  # most tokens in one sequence, prompt and output
    chains_only: bool = False  # branches of a draft would change the last bits of its logits


@dataclass(frozen=True)
class PoolUsage:
    """The use of an engine's KV pool."""

    blocks: int = 0
    used_blocks: int = 0  # by live sequences; blocks that are kept for prefix reuse are free


class LoadedEngine(Protocol):
    """An engine in memory, used from one thread. One call serves many sequences."""

    @property
    def facts(self) -> EngineFacts:
        """The sizes that the algorithms need."""
        ...

    @property
    def pool_usage(self) -> PoolUsage:
        """The use of the KV pool now."""
        ...

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> Cache:
        """Return a new sequence that keeps the longest known prefix of `tokens`.

        The last token is never part of the prefix, since its logits will be wanted. Only sequences
        of the same salt share prefixes.
        """
        ...

    def fits(self, items: Sequence[Item]) -> bool:
        """Tell whether the pool has room for the new rows of `items`."""
        ...

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Run all items in one call and return the wanted rows of each.

        The rows of an item lie after the kept rows of its cache until the next step of that cache;
        `Cache.keep` keeps some of them. Raises PoolFull, and changes nothing, if there is no room.
        """
        ...

    def guess(self, hidden: Logits) -> list[Guesses]:
        """Run the Medusa heads on hidden states [B, D].

        Raises Unsupported if the engine was built without heads.
        """
        ...

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the recurrent drafter on N paths: `hidden` and `states` [N, D], `tokens` [N].

        Raises Unsupported if the engine was built without a drafter.
        """
        ...

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Run the one-layer drafter on the drafts of some sequences, in one call.

        Its rows do not become rows of the caches. Raises PoolFull if there is no room for them, and
        Unsupported if the engine was built without such a drafter.
        """
        ...

    def trim(self) -> None:
        """Give back memory that only loading and the first steps needed."""
