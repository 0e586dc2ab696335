"""The reference as a judge of differences: loaded when it is first needed, after the servers.

It reads a context and returns the log probability of every token that may follow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from specpipe.core.contracts import Floats, Logits
from specpipe.runtime.prompt_scores import log_normalizers

if TYPE_CHECKING:
    from specpipe.validate.reference import ReferenceAnswer


class ReferenceModel(Protocol):
    """What a validation needs of the reference; `reference.Reference` is one."""

    def generate(
        self, prompt: Sequence[int], max_tokens: int, end_ids: Sequence[int]
    ) -> "ReferenceAnswer":
        """Return the greedy answer to a prompt."""
        ...

    def read(self, tokens: Sequence[int], block: int) -> Iterator[Logits]:
        """Yield the logits after every token, block by block."""
        ...


class Judge:
    """Loads the reference at most once, and remembers the contexts that it has read."""

    def __init__(self, open_reference: Callable[[], ReferenceModel]) -> None:
        self._open = open_reference
        self._model: ReferenceModel | None = None
        self._rows: dict[tuple[int, ...], Floats] = {}

    @property
    def model(self) -> ReferenceModel:
        """The reference."""
        if self._model is None:
            self._model = self._open()
        return self._model

    def row(self, context: Sequence[int]) -> Floats:
        """Return the log probabilities [V] of the token after a context."""
        key = tuple(context)
        if key not in self._rows:
            self._rows[key] = self.rows(context, 1)[-1]
        return self._rows[key]

    def rows(self, tokens: Sequence[int], last: int) -> Floats:
        """Return the log probabilities [last, V] after the last tokens of a text."""
        kept: list[Logits] = []
        for block in self.model.read(tokens, 256):
            kept.append(block)
            while sum(map(len, kept[1:])) >= last:
                kept.pop(0)
        logits = np.concatenate(kept)[-last:].astype(np.float64)
        found: Floats = logits - log_normalizers(logits)[:, None]
        return found
