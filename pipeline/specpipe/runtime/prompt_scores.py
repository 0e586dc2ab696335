"""`return_prompt_log_probs`: how likely every token of a prompt is, and the most likely token.

Logits are reduced block by block as the engine computes them, so a request of any length needs no
[n, V] array. Log probabilities are those of the model at temperature 1, without penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Floats, Logits

FLAG = "return_prompt_log_probs"
SUPPORTED = frozenset({FLAG})


def log_normalizers(exact: Floats) -> Floats:
    """Return the logarithm of the sum of exponentials of every row [n, V] of logits."""
    top = exact.max(axis=1)
    found: Floats = np.log(np.exp(exact - top[:, None]).sum(axis=1)) + top
    return found


@dataclass
class PromptScorer:
    """The scores of one prompt of n tokens, in its order.

    Position i has what the model expects after token i: the log probability of token i + 1, and the
    most likely token with its own. No token follows the last one, so its first value is NaN. If the
    following token is the most likely one, both values are the same float.
    """

    prompt: Sequence[int]
    _log_probs: list[float] = field(default_factory=list)
    _top_ids: list[int] = field(default_factory=list)
    _top_log_probs: list[float] = field(default_factory=list)

    def add(self, rows: Logits) -> None:
        """Take the logits [n, V] after the next n tokens."""
        at = len(self._top_ids)
        following = np.array([*self.prompt[at + 1 : at + 1 + len(rows)], 0][: len(rows)], np.int64)
        top = rows.argmax(axis=1)
        places = np.arange(len(rows))
        exact = rows.astype(np.float64)
        highest = exact[places, top]
        totals = log_normalizers(exact)
        found = exact[places, following] - totals
        if at + len(rows) == len(self.prompt):
            found[-1] = np.nan
        self._log_probs += found.tolist()
        self._top_ids += top.tolist()
        self._top_log_probs += (highest - totals).tolist()

    def outputs(self) -> dict[str, NDArray[Any]]:
        """Return the output tensors, [1, n] each."""
        return {
            "prompt_log_probs": np.array([self._log_probs], np.float32),
            "prompt_top_ids": np.array([self._top_ids], np.int32),
            "prompt_top_log_probs": np.array([self._top_log_probs], np.float32),
        }
