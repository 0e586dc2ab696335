"""What a request may carry: refused by size, with the bound, before anything is done with it."""

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.errors import ConfigError
from specpipe.core.guide import MOST_BYTES, Guide
from specpipe.runtime.bounds import (
    MOST_WORDS,
    MOST_WORDS_BYTES,
    MOST_WORDS_TOKENS,
    check_texts,
    check_tokens,
    request_bytes,
)
from specpipe.runtime.exchange import Request, dump_submit
from specpipe.speculate.decode import Limits

WORD_LISTS = ["stop_words", "bad_words", "embedding_bias_words", "STOP_WORDS_DICT"]


class Unread(bytes):
    """A text that nobody may look into."""

    def decode(self, *arguments: object, **options: object) -> str:
        raise AssertionError("the text was read")


def texts(*values: object) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


@pytest.mark.parametrize("name", ["text_input", "QUERY"])
def test_a_text_that_no_prompt_can_be_is_refused_unread(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} has 101 bytes: at most 100 are allowed"):
        check_texts({name: texts(Unread(b"x" * 101))}, most_bytes=100)
    check_texts({name: texts(Unread(b"x" * 100))}, most_bytes=100)


def test_several_texts_are_refused_unread() -> None:
    with pytest.raises(ConfigError, match="text_input has 2 texts: must have one"):
        check_texts({"text_input": texts(Unread(b"a"), Unread(b"b"))}, most_bytes=100)


@pytest.mark.parametrize("name", WORD_LISTS)
def test_more_words_than_a_list_may_have_are_refused_unread(name: str) -> None:
    words = [Unread(b"w")] * (MOST_WORDS + 1)
    with pytest.raises(ConfigError, match=f"^{name} has 1001 words: at most 1000 are allowed"):
        check_texts({name: texts(*words)}, most_bytes=100)
    check_texts({name: texts(*words[1:])}, most_bytes=100)


@pytest.mark.parametrize("name", WORD_LISTS)
def test_words_that_are_too_long_together_are_refused_unread(name: str) -> None:
    half = Unread(b"w" * (MOST_WORDS_BYTES // 2))
    check_texts({name: texts(half, half)}, most_bytes=100)
    with pytest.raises(ConfigError, match=f"^{name} has 32001 bytes: at most 32000 are allowed"):
        check_texts({name: texts(half, half, Unread(b"w"))}, most_bytes=100)


@pytest.mark.parametrize("name", ["input_ids", "draft_input_ids"])
def test_more_tokens_than_the_engine_takes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} has 11 tokens: at most 10 .*\(max_input_len\)"):
        check_tokens({name: np.zeros((1, 11), np.int32)}, 10, "max_input_len")
    check_tokens({name: np.zeros((1, 10), np.int32)}, 10, "max_input_len")


@pytest.mark.parametrize("name", ["stop_words_list", "bad_words_list"])
def test_more_tokens_than_all_words_may_have_are_refused(name: str) -> None:
    most = MOST_WORDS_TOKENS
    with pytest.raises(ConfigError, match=f"{name} has {most + 1} tokens: at most {most}"):
        check_tokens({name: np.zeros((1, 2, most + 1), np.int32)}, 10, "max_input_len")
    check_tokens({name: np.zeros((1, 2, most), np.int32)}, 10, "max_input_len")


def test_the_largest_request_that_is_allowed_fits_the_engines_socket() -> None:
    token = 2**31 - 1
    words = tuple((token,) for _ in range(MOST_WORDS_TOKENS))
    request = Request(
        request_id="x" * 1000,
        prompt=(token,) * 5000,
        sampling=Sampling(bad_words=words, seed=2**64 - 1),
        limits=Limits(10_000, ((token,) * MOST_WORDS_TOKENS,)),
        bias=tuple((token, -1 / 3 * 1e9) for _ in range(MOST_WORDS_TOKENS)),
        guide=Guide("regex", "\x01" * MOST_BYTES),
    )
    assert len(dump_submit(1, request)) <= request_bytes(5000)
