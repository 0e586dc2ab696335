"""The pool of KV blocks: which block holds which rows of which sequence.

A block has a number of users: the caches whose tables contain it. A full block whose rows are all
kept enters the prefix index. Without users it stays there until its place is needed: blank blocks
are taken first, then the indexed block that has been without users for the longest time.

A block is written only while one cache uses it and the index does not contain it:

* a block with several users is copied before it is written;
* an indexed block with one user leaves the index instead, which costs no block. So a sequence that
  fills the whole pool can still rewrite its end.

A cache that fills a block whose equal is indexed drops its own and uses the indexed one. So every
user of an indexed block also uses the block before it, and blocks leave the index end first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from specpipe.core.contracts import Ints
from specpipe.core.engines import PoolFull
from specpipe.engine.openvino.prefixes import PrefixEntry, PrefixIndex

BLOCK = 32  # rows in a block; fixed by the CPU kernels

_NO_ROWS: Ints = np.zeros(0, np.int64)


class Storage(Protocol):
    """The arrays of keys and values, of all layers."""

    def copy_block(self, source: int, target: int) -> None:
        """Copy all rows of a block."""

    def move_rows(self, source: Ints, target: Ints) -> None:
        """Copy rows between slots (block * BLOCK + offset); all are read before one is written."""


class BlockPool:
    """The blocks of one model. Every operation costs time only for the blocks that it touches."""

    def __init__(
        self, blocks: int, storage: Storage, *, prefix_cache: bool = True, seed: bytes = b""
    ) -> None:
        """Manage `blocks` blocks of `storage`; `seed` identifies the model in hashes."""
        self.hits = 0  # tokens that `open` found
        self.queries = 0  # tokens that `open` was given
        self.evictions = 0  # indexed blocks whose place was needed
        self.storage = storage
        self._prefix_cache = prefix_cache
        self._users = [0] * blocks
        self._index = PrefixIndex(seed)
        # Both have no users. Those in the index stand in the order in which they lost the last one.
        self._blank = list(range(blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Count the blocks without users, those in the prefix index included."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Count the blocks with users."""
        return len(self._users) - self.free

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> "BlockCache":
        """Return a cache that keeps the longest known prefix of `tokens` in whole blocks.

        The last token is never part of the prefix. Caches of different salts share no blocks: the
        salt is part of the first block's content, and every other block follows its parent.
        """
        whole = max(0, len(tokens) - 1) // BLOCK
        found: list[int] = []
        parent: PrefixEntry | None = None
        for number in range(whole):
            parent = self._index.find(parent, _bytes(tokens, number, salt))
            if parent is None:
                break
            found.append(parent.block)
        self.queries += len(tokens)
        self.hits += len(found) * BLOCK
        return BlockCache(self, found, list(tokens[: len(found) * BLOCK]), salt)

    def fits(self, needs: Sequence[tuple["BlockCache", int]]) -> bool:
        """Tell whether `reserve` succeeds for all `needs` in this order: caches and their rows."""
        free, users = self.free, dict[int, int]()
        for cache, rows in needs:
            free -= self._need(cache, rows, users)
            if free < 0:
                return False
        return True

    def reserve(self, cache: "BlockCache", rows: int) -> None:
        """Give `cache` blocks that it may write, for `rows` rows after the kept ones.

        The rows of its last step are forgotten. Raises PoolFull, and changes nothing, if too few
        blocks are free.
        """
        need = self._need(cache, rows, {})
        if need > self.free:
            raise PoolFull(
                f"a step needs {need} more blocks of {BLOCK} rows, and {self.free} of the pool's"
                f" {len(self._users)} are free"
            )
        cache.forget_step(rows)
        if (block := _open_block(cache, rows)) is not None:
            cache.blocks[cache.length // BLOCK] = self._writable(block)
        while len(cache.blocks) < _count(cache.length + rows):
            cache.blocks.append(self._take())

    def share(self, block: int) -> None:
        """Count one more user of `block`."""
        self._idle.pop(block, None)
        self._users[block] += 1

    def give_back(self, block: int) -> None:
        """Count one user of `block` less; it is free after its last one."""
        self._users[block] -= 1
        if self._users[block] == 0:
            if self._index.at(block) is None:
                self._blank.append(block)
            else:
                self._idle[block] = None

    def register(self, cache: "BlockCache", number: int) -> None:
        """Add a full block of `cache` to the index, or let the cache use its equal there.

        A block whose key belongs to other tokens stays outside if the other block is in use.
        """
        parent = self._index.at(cache.blocks[number - 1]) if number else None
        if not self._prefix_cache or (number and parent is None):
            return
        block, tokens = cache.blocks[number], _bytes(cache.tokens, number, cache.salt)
        key = self._index.key(parent, tokens)
        known = self._index.get(key)
        if known is not None and known.matches(parent, tokens):
            self.share(known.block)
            self.give_back(block)
            cache.blocks[number] = known.block
        elif known is None or self._discard(known.block):
            self._index.add(PrefixEntry(key, block, parent, tokens))

    def copies(self, block: int, users: dict[int, int]) -> bool:
        """Tell whether `block` must be copied before it is written; `users` overrides the count."""
        return users.get(block, self._users[block]) > 1

    def _need(self, cache: "BlockCache", rows: int, users: dict[int, int]) -> int:
        """Count the free blocks that `reserve` takes, less those it gives back.

        `users` holds the users of blocks after the needs before this one, and is updated.
        """
        need = _count(cache.length + rows) - len(cache.blocks)
        block = _open_block(cache, rows)
        if block is not None and self.copies(block, users):
            users[block] = users.get(block, self._users[block]) - 1
            need += 1
        return need

    def _writable(self, block: int) -> int:
        """Return `block` or its copy, with one user and outside the index."""
        if not self.copies(block, {}):
            self._index.remove(block)
            return block
        copy = self._take()
        self.storage.copy_block(block, copy)
        self.give_back(block)
        return copy

    def _take(self) -> int:
        """Return a free block, with one user."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._index.remove(block)
            self.evictions += 1
        self._users[block] = 1
        return block

    def _discard(self, block: int) -> bool:
        """Remove an indexed block without users from the index; return whether it had none."""
        if self._users[block]:
            return False
        self._index.remove(block)
        del self._idle[block]
        self._blank.append(block)
        return True


class BlockCache:
    """The rows of one sequence. Rows after the kept ones are garbage, except the last step's."""

    def __init__(
        self, pool: BlockPool, blocks: list[int], tokens: list[int], salt: str = ""
    ) -> None:
        """Use `blocks`, which hold the rows of `tokens`; see `BlockPool.open`."""
        self.salt = salt
        self.tokens = tokens  # kept
        self.blocks = blocks
        self.fresh = _NO_ROWS  # the tokens of the last step's rows, which follow the kept ones
        self.beside: BlockCache | None = None  # the rows of a drafter, in a pool of their own
        self._pool = pool
        for block in blocks:
            pool.share(block)

    @property
    def length(self) -> int:
        """Count the kept rows."""
        return len(self.tokens)

    def table(self, rows: int) -> list[int]:
        """Return the blocks of the kept rows and of `rows` more."""
        return self.blocks[: _count(self.length + rows)]

    def written(self, tokens: Ints) -> None:
        """Note that a step has written the rows of `tokens` after the kept ones."""
        self.fresh = tokens

    def keep(self, rows: Ints) -> None:
        """Keep some rows of the last step (ascending indices), and forget the others."""
        tokens = self.fresh[rows].tolist()
        self._move(rows)
        filled = range(self.length // BLOCK, (self.length + len(tokens)) // BLOCK)
        self.tokens += tokens
        for number in filled:
            self._pool.register(self, number)
        self.forget_step()

    def truncate(self, length: int) -> None:
        """Forget the rows from `length` on, and those of the last step."""
        del self.tokens[length:]
        self.forget_step()

    def release(self) -> None:
        """Give all blocks back; the cache is then empty."""
        self.truncate(0)
        if self.beside is not None:
            self.beside.release()
            self.beside = None

    def fork(self, length: int | None = None) -> "BlockCache":
        """Return a cache that keeps the first `length` kept rows, by default all, in shared blocks.

        The rows of the last step stay with this cache only.
        """
        tokens = self.tokens[:length]
        return BlockCache(self._pool, self.blocks[: _count(len(tokens))], tokens, self.salt)

    def forget_step(self, rows: int = 0) -> None:
        """Forget the rows of the last step; give back blocks beyond the kept rows and `rows` more.

        The last block is given back first, so that it also leaves the prefix index first.
        """
        self.fresh = _NO_ROWS
        for _ in range(len(self.blocks) - _count(self.length + rows)):
            self._pool.give_back(self.blocks.pop())

    def _move(self, rows: Ints) -> None:
        """Move these rows of the last step to the end of the kept ones."""
        if len(rows) == 0 or rows[-1] == len(rows) - 1:
            return  # they are there
        targets = np.arange(len(rows))
        first = int((rows != targets).argmax())  # rows ascend: all later ones move, too
        self._pool.storage.move_rows(self._slots(rows[first:]), self._slots(targets[first:]))

    def kept_slots(self, first: int, end: int) -> Ints:
        """Return the slots of the kept rows from `first` to `end` - 1."""
        rows, table = np.arange(first, end), np.array(self.blocks, np.int64)
        slots: Ints = table[rows // BLOCK] * BLOCK + rows % BLOCK
        return slots

    def _slots(self, rows: Ints) -> Ints:
        """Return the slots of rows of the last step."""
        first = self.length // BLOCK
        starts = np.array(self.blocks[first:], np.int64) * BLOCK
        places = rows + self.length % BLOCK
        slots: Ints = starts[places // BLOCK] + places % BLOCK
        return slots


def _open_block(cache: BlockCache, rows: int) -> int | None:
    """Return the block with kept rows that `rows` more rows would be written into, if any."""
    return cache.blocks[cache.length // BLOCK] if rows and cache.length % BLOCK else None


def _count(rows: int) -> int:
    """Return the number of blocks that hold `rows` rows."""
    return -(-rows // BLOCK)


def _bytes(tokens: Sequence[int], number: int, salt: str) -> bytes:
    """Return the tokens of one block as bytes; those of the first block follow the salt."""
    block = np.array(tokens[number * BLOCK : (number + 1) * BLOCK], np.int64).tobytes()
    return block if number else salt.encode() + block
