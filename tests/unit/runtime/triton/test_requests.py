"""Tensors into values, and one sentence for whatever does not fit."""

import numpy as np
import pytest

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.repository.signature import signatures
from specpipe.runtime.triton import token_requests, unsupported
from specpipe.runtime.triton.requests import (
    check_lengths,
    sampling,
    text_request,
    texts,
    word_ids,
    word_layout,
)


def text_tensors(**more: np.ndarray) -> dict[str, np.ndarray]:
    return {"text_input": np.array([[b"hi"]], object), "max_tokens": np.array([[5]]), **more}


def one(value: object, kind: type | None = None) -> np.ndarray:
    return np.array([[value]], kind)


def test_a_request_of_two_tensors_is_enough() -> None:
    request = text_request(text_tensors())
    assert (request.prompt, request.max_tokens, request.stream, request.echo) == (
        "hi",
        5,
        False,
        True,
    )
    assert request.num_draft_tokens is None and request.wants == frozenset()


def test_flags_and_words_are_read() -> None:
    request = text_request(text_tensors(
        stream=one(True), exclude_input_in_output=one(True), return_log_probs=one(True),
        stop_words=np.array([[b"a", b"", b"b"]], object), num_draft_tokens=one(0),
    ))  # fmt: skip
    assert request.stream and not request.echo and request.wants == {"return_log_probs"}
    assert request.stop_words == ("a", "b") and request.num_draft_tokens == 0


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"max_tokens": one(0)}, "max_tokens is 0"),
        ({"max_tokens": one(-3)}, "max_tokens is -3"),
        ({"text_input": np.array([[b"a"], [b"b"]], object)}, "2 texts"),
        ({"text_input": np.array([[b"ab\xff"]], object)}, "byte 2 is 0xff"),
        ({"temperature": np.array([[1.0, 2.0]])}, "temperature has 2 values"),
    ],
)
def test_bad_values_are_refused_in_a_sentence(tensors: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        given = text_tensors(**tensors)
        text_request(given)
        sampling(given, (), ())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"beam_width": one(2)}, "beam_width is 2: beam search is not supported; use 1"),
        ({"num_return_sequences": one(3)}, "several answers"),
        ({"length_penalty": one(0.5)}, "length_penalty is 0.5"),
        ({"image_input": np.zeros((1, 3, 2, 2))}, "images are not supported"),
        ({"lora_task_id": one(7)}, "LoRA adapters are not supported"),
        ({"return_context_logits": one(True)}, "context logits"),
        ({"guided_decoding_guide_type": one(b"json", object)}, "guides, which TensorRT-LLM"),
        ({"embedding_bias_words": one(b"x", object)}, "embedding bias"),
    ],
)
def test_what_the_server_cannot_do_is_refused_never_ignored(tensors: dict, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        text_request(text_tensors(**tensors))


def test_harmless_values_of_unsupported_tensors_pass() -> None:
    text_request(text_tensors(
        beam_width=one(1), length_penalty=one(1.0), return_context_logits=one(False),
        decoder_text_input=one(b"", object), num_return_sequences=one(1),
    ))  # fmt: skip


HONOURED = {
    "text_input", "max_tokens", "stream", "stop_words", "bad_words", "end_id", "pad_id", "top_k",
    "top_p", "temperature", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "min_tokens", "seed", "exclude_input_in_output", "return_log_probs", "return_perf_metrics",
    "return_num_input_tokens", "return_num_output_tokens", "num_draft_tokens",
}  # fmt: skip
# Without effect once what they belong to is refused; both values of use_draft_logits are lossless.
HARMLESS = {"prompt_table_extra_id", "prompt_vocab_size", "use_draft_logits"}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_every_declared_tensor_is_honoured_or_refused(model: str) -> None:
    names = {tensor.name for tensor in signatures()[model].inputs}
    refused = set(unsupported.UNSUPPORTED) | set(unsupported.SINGLE_VALUED)
    assert names <= HONOURED | HARMLESS | refused


def test_without_top_k_or_top_p_the_answer_is_greedy_whatever_the_temperature() -> None:
    assert sampling({"temperature": one(1.5)}, (), ()).greedy
    assert sampling({"top_p": one(0.0), "top_k": one(0)}, (), ()).greedy
    assert sampling({"top_k": one(1), "top_p": one(0.9)}, (), ()).greedy
    assert not sampling({"top_p": one(1.0)}, (), ()).greedy
    assert not sampling({"top_k": one(40)}, (), ()).greedy


def test_sampling_values_arrive() -> None:
    got = sampling(
        {"runtime_top_k": one(9), "runtime_top_p": one(0.5), "temperature": one(0.7),
         "seed": one(2**63, np.uint64), "min_tokens": one(4), "end_id": one(17)},
        (), ((1, 2),), prefix="runtime_",
    )  # fmt: skip
    assert (got.top_k, got.top_p, got.temperature) == (9, 0.5, pytest.approx(0.7))
    assert (got.seed, got.min_tokens, got.end_ids, got.bad_words) == (2**63, 4, (17,), ((1, 2),))


def test_end_id_of_a_request_replaces_all_end_tokens_of_the_model() -> None:
    assert sampling({}, (42, 43), ()).end_ids == (42, 43)
    assert sampling({"end_id": one(7)}, (42, 43), ()).end_ids == (7,)
    assert sampling({"end_id": one(-1)}, (42, 43), ()).end_ids == ()


def test_word_layouts_survive_the_round_trip() -> None:
    for words in ((), ((1,),), ((1, 2, 3), (4,), (5, 6))):
        assert word_ids({"w": word_layout(words)}, "w") == words


def test_word_layouts_that_make_no_sense_are_refused() -> None:
    for ends in ([0, -1], [3, -1], [2, 1]):
        with pytest.raises(ConfigError, match="second row"):
            word_ids({"w": np.array([[[1, 2], ends]])}, "w")


def test_prompt_and_answer_must_fit() -> None:
    check_lengths(10, 10, 10, 20)
    with pytest.raises(ConfigError, match="the prompt has 11 tokens: at most 10"):
        check_lengths(11, 1, 10, 20)
    with pytest.raises(ConfigError, match="max_tokens is 11: .* at most 10 fit"):
        check_lengths(10, 11, 10, 20)


def test_texts_of_a_missing_tensor_are_none() -> None:
    assert texts({}, "stop_words") == []


@pytest.mark.parametrize("amount", [np.inf, -np.inf, np.nan, 3e38, -3e38])
def test_a_bias_that_overflows_is_refused(amount: float) -> None:
    tensors = text_tensors(
        embedding_bias_words=one(b"x", object),
        embedding_bias_weights=np.array([[amount]], np.float32),
    )
    with pytest.raises(ConfigError, match="for 'x': must be from -1e"):
        text_request(tensors, unsupported.BIAS)


@pytest.mark.parametrize(
    ("values", "words"),
    [([1.0] * 3, "has 3 values"), ([np.nan] * 4, "has nan"), ([3e38] * 4, "has 3.")],
)
def test_a_bias_of_the_engine_is_finite_and_has_a_value_for_each_token(
    values: list[float], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        token_requests.bias({"embedding_bias": np.array([values], np.float32)}, 4)


def test_a_bias_that_bans_tokens_stays_finite() -> None:
    given = np.array([[0, -np.inf, 1, 2, 9]], np.float32)  # one more for padding
    np.testing.assert_array_equal(
        token_requests.bias({"embedding_bias": given}, 4), np.array([0, -1e9, 1, 2], np.float32)
    )


def test_draft_logits_are_finite() -> None:
    with pytest.raises(ConfigError, match="draft_logits"):
        token_requests.draft_logits({"draft_logits": np.full((1, 2, 4), np.nan, np.float32)})
