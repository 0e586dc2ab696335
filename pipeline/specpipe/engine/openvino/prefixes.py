"""The index of full KV blocks, by the tokens of their rows.

The rows of a block depend on every token up to its end. So the key of a block is a hash of its own
tokens and of the key of the block before it. The hash only narrows the search: a block matches if
its tokens are equal and if it was computed after the very block that matched before it.
"""

from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True, eq=False)
class PrefixEntry:
    """A full block in the index. An entry is known by its identity: a new one never equals it."""

    key: bytes
    block: int
    parent: "PrefixEntry | None"  # the block before it; None: it begins the text
    tokens: bytes  # those of its own rows

    def matches(self, parent: "PrefixEntry | None", tokens: bytes) -> bool:
        """Tell whether the block holds the rows of `tokens` after the block of `parent`."""
        return self.parent is parent and self.tokens == tokens


def digest(parent: bytes, tokens: bytes) -> bytes:
    """Hash the tokens of a block, given the key of the block before it."""
    return blake2b(tokens, digest_size=16, key=parent).digest()


class PrefixIndex:
    """Finds a full block by its tokens and the block before it; one block per key."""

    def __init__(self, seed: bytes) -> None:
        self._root = blake2b(seed, digest_size=16).digest()
        self._by_key: dict[bytes, PrefixEntry] = {}
        self._by_block: dict[int, PrefixEntry] = {}

    def key(self, parent: PrefixEntry | None, tokens: bytes) -> bytes:
        """Return the key of a block that follows the block of `parent`."""
        return digest(parent.key if parent else self._root, tokens)

    def get(self, key: bytes) -> PrefixEntry | None:
        """Return the entry under `key`; its tokens may be others."""
        return self._by_key.get(key)

    def find(self, parent: PrefixEntry | None, tokens: bytes) -> PrefixEntry | None:
        """Return the entry of the block that holds `tokens` after the block of `parent`."""
        entry = self.get(self.key(parent, tokens))
        return entry if entry is not None and entry.matches(parent, tokens) else None

    def at(self, block: int) -> PrefixEntry | None:
        """Return the entry of `block`, if it has one."""
        return self._by_block.get(block)

    def add(self, entry: PrefixEntry) -> None:
        """Add an entry, whose key and block have none."""
        self._by_key[entry.key] = self._by_block[entry.block] = entry

    def remove(self, block: int) -> None:
        """Remove the entry of `block`, if it has one.

        Blocks that follow it can no longer be found: a later entry with its tokens is another one.
        """
        if entry := self._by_block.pop(block, None):
            del self._by_key[entry.key]
