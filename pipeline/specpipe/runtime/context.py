"""`return_context_logits`: returns the logits after every token of a prompt.

As upstream, the answer has them in `context_logits` [1, n, V]. A streamed answer has them in
several responses, in the order of the prompt and before the first token, so that neither side holds
more than a block of them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Logits
from specpipe.core.errors import ConfigError

MOST_BYTES = 256 << 20  # of the logits of one request
FLAG, OUTPUT = "return_context_logits", "context_logits"
SUPPORTED = frozenset({FLAG})


def most_positions(vocab_size: int) -> int:
    """Return for how many tokens a request can return logits."""
    return MOST_BYTES // (4 * vocab_size)


def check_size(prompt_length: int, vocab_size: int) -> None:
    """Raise ConfigError if the logits of a prompt would be larger than `MOST_BYTES`."""
    most = most_positions(vocab_size)
    if prompt_length > most:
        raise ConfigError(
            f"{FLAG} is true and the prompt has {prompt_length} tokens: at most {most} are "
            f"allowed with it, whose logits over {vocab_size} tokens are {MOST_BYTES >> 20} MiB"
        )


@dataclass
class ContextCollector:
    """Collects the logits of one request that has a single response."""

    whole: NDArray[np.float32]  # [n, V]
    filled: int = field(default=0)

    @staticmethod
    def of(prompt_length: int, vocab_size: int) -> "ContextCollector":
        """Make room for the logits of a prompt; raises ConfigError if they are too large."""
        check_size(prompt_length, vocab_size)
        return ContextCollector(np.empty((prompt_length, vocab_size), np.float32))

    def add(self, rows: Logits) -> None:
        """Append the next rows."""
        self.whole[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Return the output tensor."""
        return {OUTPUT: self.whole[None]}


def piece(rows: Logits) -> dict[str, NDArray[Any]]:
    """Return the tensors of a response of a stream that has logits and no token yet."""
    return {
        "output_ids": np.zeros((1, 1, 0), np.int32),
        "sequence_length": np.zeros((1, 1), np.int32),
        OUTPUT: rows[None],
    }
