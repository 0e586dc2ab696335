"""Bounds on the size of a request, checked before any other work on it.

A client may send up to two gigabytes. Larger values than any valid request has are refused by
their size. Independent of Triton.
"""

from collections.abc import Iterable

import numpy as np

from specpipe.core.endpoint import is_draft_limit
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import MOST_BYTES
from specpipe.runtime.triton.requests import Tensors

MOST_WORDS = 1_000  # in each list of stop, bad or biased words
MOST_WORDS_BYTES = 32_000  # in each list, all words together
# Every word is spelled in three ways, see `TextTokenizer.words`, at worst with a token a byte.
MOST_WORDS_TOKENS = 3 * (MOST_WORDS_BYTES + MOST_WORDS)

MOST_CHAT_BYTES = 1 << 16  # in addition to twice what the texts may have: keys, quotes, tools

_TEXTS = ("text_input", "QUERY")
_CHATS = ("chat", "CHAT")
_WORD_LISTS = (
    *("stop_words", "bad_words", "embedding_bias_words"),
    *("STOP_WORDS_DICT", "BAD_WORDS_DICT", "EMBEDDING_BIAS_WORDS"),
)
_TOKEN_LISTS = ("stop_words_list", "bad_words_list")
_NOTHING = np.zeros(0, np.int32)


def check_texts(tensors: Tensors, most_bytes: int) -> None:
    """Raise ConfigError if a text has more than `most_bytes` bytes or a list of words too many."""
    for name in _TEXTS:
        texts = tensors.get(name, _NOTHING).reshape(-1)
        if texts.size > 1:
            raise ConfigError(f"{name} has {texts.size} texts: must have one; send a request each")
        _require(_bytes(texts), most_bytes, name, "bytes", "as many as max_input_len tokens have")
    for name in _CHATS:
        chats = tensors.get(name, _NOTHING).reshape(-1)
        _require(chats.size, 1, name, "conversations", "send a request each")
        _require(_bytes(chats), 2 * most_bytes + MOST_CHAT_BYTES, name, "bytes", "as JSON")
    for name in _WORD_LISTS:
        words = tensors.get(name, _NOTHING).reshape(-1)
        _require(words.size, MOST_WORDS, name, "words", "a list")
        _require(_bytes(words), MOST_WORDS_BYTES, name, "bytes", "all its words together")


def check_tokens(tensors: Tensors, most_tokens: int, why: str) -> None:
    """Raise ConfigError if the prompt or the draft has more than `most_tokens`, or words too many.

    `why` names the bound; words are in upstream's [2, n] layout.
    """
    for name in ("input_ids", "draft_input_ids"):
        _require(tensors.get(name, _NOTHING).size, most_tokens, name, "tokens", why)
    for name in _TOKEN_LISTS:
        count = tensors.get(name, _NOTHING).size // 2
        _require(count, MOST_WORDS_TOKENS, name, "tokens", "all its words together")


def draft_tokens(
    asked: int | None, most: int, *, any_number: bool = True, who: str = "the engine"
) -> int:
    """Return how many draft tokens a step of a request has at most; `asked` or all of them.

    Raises ConfigError for a number outside of [0, most]. Unless `any_number`, raises Unsupported
    for a number between these two, with `who` drafts.
    """
    if asked is None or is_draft_limit(asked, most, any_number=any_number):
        return most if asked is None else asked
    if 0 <= asked <= most:
        raise Unsupported(
            f"num_draft_tokens is {asked}: {who} drafts {most} tokens a step, or none with 0"
        )
    raise ConfigError(
        f"num_draft_tokens is {asked}: must be from 0 to {most}, "
        "the number that the server was configured with"
    )


def request_bytes(max_input_len: int) -> int:
    """Return how long the longest request is on the engine's socket, as JSON."""
    tokens = max_input_len + 2 * MOST_WORDS_TOKENS  # stop and bad words
    guide = 6 * MOST_BYTES  # as JSON: a control character has six bytes
    return 12 * tokens + 48 * MOST_WORDS_TOKENS + guide + (1 << 16)  # biases; the other options


def _require(found: int, most: int, name: str, unit: str, why: str) -> None:
    if found > most:
        raise ConfigError(f"{name} has {found} {unit}: at most {most} are allowed ({why})")


def _bytes(values: Iterable[object]) -> int:
    """Return the size of texts; a str has at least one byte per character."""
    return sum(len(value) for value in values if isinstance(value, bytes | str))
