"""Convert request tensors to checked values; a refusal is one sentence. No Triton here.

A request is a mapping from tensor name to numpy array, whatever its batch dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.core.contracts import Sampling
from specpipe.core.conversation import Conversation, load_conversation
from specpipe.core.errors import ConfigError
from specpipe.runtime.triton.unsupported import NOTHING, refuse_unsupported

Tensors = Mapping[str, NDArray[Any]]


MOST_SALT = 256  # characters
MOST_BIAS = 1e9  # either way; more than that is of no use, and may overflow when words add up


def number(tensors: Tensors, name: str) -> float | None:
    """Return a tensor's only value, or None if it was left out."""
    array = tensors.get(name)
    if array is None or array.size == 0:
        return None
    if array.size > 1:
        raise ConfigError(f"{name} has {array.size} values: must have one")
    return float(array.reshape(-1)[0])


def whole(tensors: Tensors, name: str) -> int | None:
    """Return an integer tensor's only value, or None if it was left out."""
    array = tensors.get(name)
    return None if number(tensors, name) is None or array is None else int(array.reshape(-1)[0])


def flag(tensors: Tensors, name: str) -> bool:
    """Return a boolean tensor's value; false if it was left out."""
    return bool(number(tensors, name))


def draft_limit(tensors: Tensors, parameters: Mapping[str, Any]) -> int | None:
    """Return the `num_draft_tokens` of a request, a tensor or a request parameter; None: neither.

    Raises ConfigError if the parameter is no whole number.
    """
    asked = whole(tensors, "num_draft_tokens")
    if asked is not None:
        return asked
    value = parameters.get("num_draft_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"the parameter num_draft_tokens is {value!r}: must be a whole number")
    return value


def cache_salt(parameters: Mapping[str, Any]) -> str:
    """Return the request parameter `cache_salt`; raises ConfigError if it is no short text."""
    value = parameters.get("cache_salt", "")
    if not isinstance(value, str) or len(value) > MOST_SALT:
        raise ConfigError(
            f"the parameter cache_salt must be a text of at most {MOST_SALT} characters"
        )
    return value


def fits_answer(parameters: Mapping[str, Any]) -> bool:
    """Tell whether `max_tokens` is cut to what the engine takes, by the request's parameter."""
    return parameters.get("fit_max_tokens") is True


def texts(tensors: Tensors, name: str) -> list[str]:
    """Return the texts of a BYTES tensor; raises ConfigError if one is not UTF-8."""
    found = []
    for value in tensors.get(name, np.array([], object)).reshape(-1):
        raw = value if isinstance(value, bytes) else str(value).encode()
        try:
            found.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{name} is not valid UTF-8: byte {error.start} is 0x{raw[error.start]:02x}"
            ) from error
    return found


@dataclass(frozen=True)
class TextRequest:
    """A request to `ensemble` or `tensorrt_llm_bls`."""

    prompt: str | Conversation
    max_tokens: int
    stream: bool
    stop_words: tuple[str, ...]
    bad_words: tuple[str, ...]
    echo: bool  # repeat the prompt before the answer
    num_draft_tokens: int | None
    wants: frozenset[str]  # which return_* flags are set
    bias: tuple[tuple[str, float], ...] = ()  # words and what is added to their logits
    use_draft_logits: bool = False
    counts: bool = False  # every response of a stream has the number of output tokens so far

    @property
    def special(self) -> bool:
        """Whether special tokens have text: with tools, they may be the marks of tool calls."""
        return isinstance(self.prompt, Conversation) and bool(self.prompt.tools)


RETURNS = (
    "return_log_probs",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "return_finish_reason",
)


def text_request(
    tensors: Tensors,
    supported: frozenset[str] = NOTHING,
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> TextRequest:
    """Check the tensors of a text request; `supported` is what only some servers do.

    Raises ConfigError or Unsupported with one sentence.
    """
    refuse_unsupported(tensors, supported)
    prompt = read_prompt(tensors)
    return TextRequest(
        prompt=prompt,
        max_tokens=_max_tokens(tensors, "max_tokens"),
        stream=flag(tensors, "stream"),
        stop_words=tuple(w for w in texts(tensors, "stop_words") if w),
        bad_words=tuple(w for w in texts(tensors, "bad_words") if w),
        echo=isinstance(prompt, str) and not flag(tensors, "exclude_input_in_output"),
        num_draft_tokens=draft_limit(tensors, parameters),
        wants=frozenset(name for name in RETURNS if flag(tensors, name)),
        bias=_bias(tensors),
        use_draft_logits=flag(tensors, "use_draft_logits"),
        counts=parameters.get("count_every_response") is True,
    )


def read_prompt(
    tensors: Tensors, text: str = "text_input", chat: str = "chat"
) -> str | Conversation:
    """Return the prompt of a request: a text, or a conversation instead; the names are inputs.

    Raises ConfigError unless there is exactly one, and what `load_conversation` raises.
    """
    given, chats = texts(tensors, text), texts(tensors, chat)
    if given and chats:
        raise ConfigError(f"the request has {text} and {chat}: must have one of them")
    if chats:
        return load_conversation(chats[0], chat)
    if len(given) != 1:
        raise ConfigError(f"{text} has {len(given)} texts: must have one; send one request a text")
    return given[0]


def _bias(tensors: Tensors) -> tuple[tuple[str, float], ...]:
    words = texts(tensors, "embedding_bias_words")
    weights = tensors.get("embedding_bias_weights", np.zeros(0, np.float32)).reshape(-1)
    if len(words) != len(weights):
        raise ConfigError(
            f"embedding_bias_words has {len(words)} words, but embedding_bias_weights has "
            f"{len(weights)} values: each word needs one"
        )
    amounts = [float(weight) for weight in weights]
    for word, amount in zip(words, amounts, strict=True):
        if not abs(amount) <= MOST_BIAS:
            raise ConfigError(
                f"embedding_bias_weights has {amount} for {word!r}: must be from {-MOST_BIAS:.0e} "
                f"to {MOST_BIAS:.0e}"
            )
    return tuple((word, amount) for word, amount in zip(words, amounts, strict=True) if word)


def _max_tokens(tensors: Tensors, name: str) -> int:
    value = whole(tensors, name)
    if value is None or value < 1:
        raise ConfigError(f"{name} is {value}: must be at least 1")
    return value


def sampling(
    tensors: Tensors,
    end_ids: tuple[int, ...],
    bad_words: tuple[tuple[int, ...], ...],
    *,
    prefix: str = "",
) -> Sampling:
    """Return the sampling options of a request; `prefix` is what its top_k and top_p begin with.

    A request's `end_id` replaces `end_ids`, the model's: -1 ends at none of them.

    As upstream: without a top_k above 1 or a top_p above 0, the most likely token is taken,
    whatever the temperature.
    """
    top_k = whole(tensors, f"{prefix}top_k") or 0
    top_p = number(tensors, f"{prefix}top_p") or 0.0
    greedy = top_k == 1 or (top_k == 0 and top_p == 0)
    plain = Sampling()

    def value(name: str, default: float) -> float:
        given = number(tensors, name)
        return default if given is None else given

    return Sampling(
        temperature=value("temperature", plain.temperature),
        top_k=1 if greedy else top_k,
        top_p=top_p if top_p != 0 else 1.0,
        repetition_penalty=value("repetition_penalty", plain.repetition_penalty),
        presence_penalty=value("presence_penalty", plain.presence_penalty),
        frequency_penalty=value("frequency_penalty", plain.frequency_penalty),
        min_tokens=whole(tensors, "min_tokens") or 0,
        end_ids=_end_ids(whole(tensors, "end_id"), end_ids),
        bad_words=bad_words,
        seed=whole(tensors, "seed") or 0,
    )


def _end_ids(given: int | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if given is None:
        return default
    return () if given == -1 else (given,)


def word_ids(tensors: Tensors, name: str) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences of upstream's [2, n] layout: flat ids, and ends padded with -1.

    Raises ConfigError for ends that do not rise or lie outside.
    """
    array = tensors.get(name)
    if array is None or array.size == 0:
        return ()
    flat, ends = array.reshape(2, -1)
    words, begin = [], 0
    for end in ends:
        if end < 0:
            break
        if not begin < end <= len(flat):
            raise ConfigError(f"{name}: the second row must rise and end with -1, got {list(ends)}")
        words.append(tuple(int(t) for t in flat[begin:end]))
        begin = int(end)
    return tuple(words)


def word_layout(words: tuple[tuple[int, ...], ...]) -> NDArray[np.int32]:
    """Return token sequences in upstream's [1, 2, n] layout; the inverse of `word_ids`."""
    flat = [t for word in words for t in word]
    ends = list(np.cumsum([len(word) for word in words]))
    return np.array([[flat, ends + [-1] * (len(flat) - len(ends))]], np.int32).reshape(1, 2, -1)


def check_lengths(prompt: int, max_tokens: int, max_input_len: int, max_seq_len: int) -> None:
    """Raise ConfigError if prompt and answer do not fit the engine."""
    if prompt > max_input_len:
        raise ConfigError(
            f"the prompt has {prompt} tokens: at most {max_input_len} (max_input_len) are allowed"
        )
    if prompt + max_tokens > max_seq_len:
        raise ConfigError(
            f"max_tokens is {max_tokens}: with a prompt of {prompt} tokens at most "
            f"{max_seq_len - prompt} fit into {max_seq_len} (max_seq_len)"
        )
