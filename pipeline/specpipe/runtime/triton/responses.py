"""Convert values to response tensors. Independent of Triton."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.upstream import KV_BLOCK
from specpipe.runtime.exchange import Counters


def text_tensor(text: str) -> NDArray[Any]:
    """Return the [1] BYTES array of one text."""
    return np.array([text.encode()], object)


def perf_tensors(counters: Counters, prompt_length: int) -> dict[str, NDArray[Any]]:
    """Return upstream's performance outputs, [1, 1] each; they are those of the whole request."""
    drafted = counters.draft_tokens
    rate = counters.accepted_draft_tokens / drafted if drafted else 0.0
    blocks = -(-(prompt_length + counters.output_tokens) // KV_BLOCK)
    values: dict[str, tuple[float, type]] = {
        "arrival_time_ns": (counters.arrival_ns, np.int64),
        "first_scheduled_time_ns": (counters.first_scheduled_ns, np.int64),
        "first_token_time_ns": (counters.first_token_ns, np.int64),
        "last_token_time_ns": (counters.last_token_ns, np.int64),
        "acceptance_rate": (rate, np.float32),
        "total_accepted_draft_tokens": (counters.accepted_draft_tokens, np.int32),
        "total_draft_tokens": (drafted, np.int32),
        "kv_cache_alloc_new_blocks": (blocks, np.int32),
        "kv_cache_reused_blocks": (0, np.int32),
        "kv_cache_alloc_total_blocks": (blocks, np.int32),
    }
    return {name: np.array([[value]], kind) for name, (value, kind) in values.items()}
