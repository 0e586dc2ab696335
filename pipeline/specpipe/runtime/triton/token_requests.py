"""Read the tensors of a request for tokens: prompt, draft and length. Independent of Triton."""

from dataclasses import dataclass

import numpy as np

from specpipe.core.contracts import Logits, Sampling
from specpipe.core.errors import ConfigError
from specpipe.runtime.triton.requests import (
    MOST_BIAS,
    Tensors,
    check_lengths,
    sampling,
    whole,
    word_ids,
)
from specpipe.speculate.sampling import check_sampling

TOPS_FLAG, MOST_TOPS = "num_top_log_probs", 20


@dataclass(frozen=True)
class TokenRequest:
    """What every request for tokens has, checked."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_words: tuple[tuple[int, ...], ...]


def read_request(
    tensors: Tensors, vocab_size: int, max_input_len: int, max_seq_len: int, *, fit: bool = False
) -> TokenRequest:
    """Read the tensors that every request for tokens has; raises ConfigError for wrong values.

    With `fit`, the number of tokens is cut to what fits after the prompt.
    """
    tokens, most = prompt(tensors, vocab_size), output_length(tensors)
    if fit and len(tokens) < max_seq_len:
        most = min(most, max_seq_len - len(tokens))
    check_lengths(len(tokens), most, max_input_len, max_seq_len)
    options = sampling(tensors, (), word_ids(tensors, "bad_words_list"), prefix="runtime_")
    check_sampling(options, vocab_size)
    return TokenRequest(tokens, most, options, word_ids(tensors, "stop_words_list"))


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
    """Return the `draft_input_ids`; raises ConfigError for a token outside the vocabulary."""
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
    """Return the requested number of tokens; raises ConfigError for less than one."""
    count = whole(tensors, "request_output_len") or 0
    if count < 1:
        raise ConfigError(f"request_output_len is {count}: must be at least 1")
    return count


def tops(tensors: Tensors) -> int:
    """Return how many likeliest tokens are wanted; raises ConfigError for too many."""
    count = whole(tensors, TOPS_FLAG) or 0
    if not 0 <= count <= MOST_TOPS:
        raise ConfigError(f"{TOPS_FLAG} is {count}: must be from 0 to {MOST_TOPS}")
    return count


def bias(tensors: Tensors, vocab_size: int) -> Logits | None:
    """Return the `embedding_bias` [V]; raises ConfigError if it is too short or not finite.

    Values below `-MOST_BIAS` ban a token; those of padding rows are dropped.
    """
    array = tensors.get("embedding_bias")
    if array is None or array.size == 0:
        return None
    amounts = array.reshape(-1)[:vocab_size].astype(np.float32)
    if len(amounts) < vocab_size:
        raise ConfigError(
            f"embedding_bias has {len(amounts)} values: must have one for each of the "
            f"{vocab_size} tokens"
        )
    wrong = amounts[~(amounts <= MOST_BIAS)]  # NaN too
    if len(wrong):
        raise ConfigError(f"embedding_bias has {wrong[0]}: must be at most {MOST_BIAS:.0e}")
    return np.maximum(amounts, np.float32(-MOST_BIAS))


def draft_logits(tensors: Tensors) -> Logits | None:
    """Return the `draft_logits` [n, V]; raises ConfigError if one is not finite."""
    array = tensors.get("draft_logits")
    if array is None or array.size == 0:
        return None
    if not np.isfinite(array).all():
        raise ConfigError("draft_logits has a value that is not finite")
    return array.reshape(-1, array.shape[-1])
