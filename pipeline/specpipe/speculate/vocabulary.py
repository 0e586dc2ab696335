"""A draft model whose vocabulary is padded to another size than the target's.

Models of one family share a tokenizer, but often pad the vocabulary to different sizes. Acceptance
compares distributions over the target's tokens, so the draft model is limited to these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from specpipe.core.contracts import Extensions, Floats, Guesses, Ints, Logits, Scores
from specpipe.core.engines import Branch, Cache, Item, LoadedEngine, PoolUsage

STAND_IN = 0  # read by a draft for tokens without a row; this only makes its drafts worse
_NEVER = np.float32(-1e30)  # finite, so that banning all other tokens leaves a distribution


class InVocabulary:
    """A `LoadedEngine` that scores exactly the ids from 0 to `vocab_size` - 1, for any engine.

    Larger ids are never proposed. Ids that the engine lacks have probability 0; if the target
    commits one, the engine reads another token for it.
    """

    def __init__(self, engine: LoadedEngine, vocab_size: int) -> None:
        self._engine = engine
        self._own_size = engine.facts.vocab_size
        self.facts = replace(engine.facts, vocab_size=vocab_size)

    @property
    def pool_usage(self) -> PoolUsage:
        """The use of the KV pool; see `LoadedEngine`."""
        return self._engine.pool_usage

    def open(self, tokens: Sequence[int] = (), salt: str = "") -> Cache:
        """Open a sequence; see `LoadedEngine`."""
        return self._engine.open(self._known(np.asarray(tokens, np.int64)).tolist(), salt)

    def fits(self, items: Sequence[Item]) -> bool:
        """Tell whether there is room; see `LoadedEngine`."""
        return self._engine.fits(items)

    def step(self, items: Sequence[Item]) -> list[Scores]:
        """Run the items, with logits over the target's ids."""
        known = [replace(item, tokens=self._known(item.tokens)) for item in items]
        return [replace(s, logits=self._aligned(s.logits)) for s in self._engine.step(known)]

    def guess(self, hidden: Logits) -> list[Guesses]:
        """Run the engine's heads; ids beyond the target's get probability 0."""
        return [Guesses(*self._drafted(g.tokens, g.probs)) for g in self._engine.guess(hidden)]

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Run the engine's drafter; ids beyond the target's get probability 0."""
        found = self._engine.extend(hidden, states, self._known(tokens))
        return Extensions(*self._drafted(found.tokens, found.probs), found.states)

    def predict(self, branches: Sequence[Branch]) -> list[Extensions]:
        """Run the engine's drafter; ids beyond the target's get probability 0."""
        known = [
            replace(b, root=int(self._known(np.array(b.root))),
                    draft=replace(b.draft, tokens=self._known(b.draft.tokens)))
            for b in branches
        ]  # fmt: skip
        found = self._engine.predict(known)
        return [Extensions(*self._drafted(e.tokens, e.probs), e.states) for e in found]

    def trim(self) -> None:
        """Give back memory; see `LoadedEngine`."""
        self._engine.trim()

    def _known(self, tokens: Ints) -> Ints:
        return np.where(tokens < self._own_size, tokens, STAND_IN)

    def _drafted(self, tokens: Ints, probs: Floats) -> tuple[Ints, Floats]:
        known = tokens < self.facts.vocab_size
        return np.where(known, tokens, STAND_IN), np.where(known, probs, 0)

    def _aligned(self, logits: Logits) -> Logits:
        missing = self.facts.vocab_size - logits.shape[1]
        if missing <= 0:
            return logits[:, : self.facts.vocab_size]
        return np.pad(logits, ((0, 0), (0, missing)), constant_values=_NEVER)


def in_vocabulary(engine: LoadedEngine, vocab_size: int) -> LoadedEngine:
    """Return `engine`, wrapped if its vocabulary size is not `vocab_size`."""
    return engine if engine.facts.vocab_size == vocab_size else InVocabulary(engine, vocab_size)
