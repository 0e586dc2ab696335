"""What a request for tokens asks: prompt and length. Knows nothing of Triton."""

import numpy as np

from specpipe.errors import ConfigError
from specpipe.repository.models.requests import Tensors, whole


def prompt(tensors: Tensors, vocab_size: int) -> tuple[int, ...]:
    """Return the `input_lengths` first of the `input_ids`; raises ConfigError if there are none."""
    ids = tensors.get("input_ids", np.array([], np.int32)).reshape(-1)
    length = whole(tensors, "input_lengths")
    if length is None or not 1 <= length <= len(ids):
        raise ConfigError(
            f"input_lengths is {length}: must be from 1 to {len(ids)}, the number of input_ids"
        )
    return token_ids(ids[:length], "input_ids", vocab_size)


def draft(tensors: Tensors, vocab_size: int) -> tuple[int, ...]:
    """Return the `draft_input_ids`; raises ConfigError for a token that the model has not."""
    ids = tensors.get("draft_input_ids", np.array([], np.int32)).reshape(-1)
    return token_ids(ids, "draft_input_ids", vocab_size)


def token_ids(
    ids: np.ndarray[tuple[int, ...], np.dtype[np.int32]], name: str, vocab_size: int
) -> tuple[int, ...]:
    """Return the tokens of a tensor, checked against the vocabulary."""
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise ConfigError(f"{name} has {outside[0]}: tokens go from 0 to {vocab_size - 1}")
    return tuple(int(i) for i in ids)


def output_length(tensors: Tensors) -> int:
    """Return how many tokens are asked for; raises ConfigError for less than one."""
    count = whole(tensors, "request_output_len") or 0
    if count < 1:
        raise ConfigError(f"request_output_len is {count}: must be at least 1")
    return count
