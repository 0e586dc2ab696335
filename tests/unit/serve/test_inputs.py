"""Requests by the description of the model that they go to."""

from dataclasses import replace

import numpy as np
import pytest

from specpipe.core.endpoint import DraftLimit, Model
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide
from specpipe.engine.llmapi.endpoint import TENSORS as LLMAPI
from specpipe.engine.upstream_models import TEXT, TOKENS, with_guides
from specpipe.serve.inputs import ModelRequest, Options, text_request, token_request

BLS = Model("tensorrt_llm_bls", TEXT, draft_limit=DraftLimit("tensor", 4, any_number=True))
ENGINE = Model("tensorrt_llm", TOKENS, draft_limit=DraftLimit("parameter", 4))
API = Model("tensorrt_llm", LLMAPI, batched=False, cumulative=True)


def plain(request: ModelRequest) -> dict[str, object]:
    return {name: array.tolist() for name, array in request.inputs.items()}


def test_a_text_and_its_options_become_the_models_tensors() -> None:
    options = Options(max_tokens=9, top_k=5, seed=3, stop_words=("a", "b"), num_draft_tokens=2)
    request = text_request(BLS, "grüß", options, stream=True)
    assert plain(request) == {
        "text_input": [["grüß".encode()]], "max_tokens": [[9]], "stream": [[True]],
        "exclude_input_in_output": [[True]], "return_perf_metrics": [[True]],
        "return_num_output_tokens": [[True]], "return_num_input_tokens": [[True]],
        "return_finish_reason": [[True]],
        "top_k": [[5]], "seed": [[3]], "stop_words": [[b"a", b"b"]], "num_draft_tokens": [[2]],
    }  # fmt: skip
    assert request.parameters == {} and request.inputs["seed"].dtype == np.uint64


def test_the_llm_api_has_other_names_and_no_batch_dimension() -> None:
    request = text_request(API, "hi", Options(max_tokens=9, top_p=0.5, seed=3), stream=False)
    assert plain(request) == {
        "text_input": [b"hi"], "sampling_param_max_tokens": [9], "streaming": [False],
        "sampling_param_exclude_input_from_output": [True],
        "sampling_param_return_perf_metrics": [True], "sampling_param_top_p": [0.5],
        "sampling_param_seed": [3],
    }  # fmt: skip


def test_tokens_are_streamed_only_where_the_model_can() -> None:
    request = token_request(ENGINE, [5, 6], Options(top_k=2, num_draft_tokens=0))
    inputs = plain(request)
    assert inputs["input_ids"] == [[5, 6]] and inputs["input_lengths"] == [[2]]
    assert inputs["runtime_top_k"] == [[2]] and inputs["streaming"] == [[True]]
    assert request.parameters == {"num_draft_tokens": 0}
    whole = plain(token_request(replace(ENGINE, decoupled=False), [5, 6], Options()))
    assert whole["streaming"] == [[False]] and whole["exclude_input_in_output"] == [[True]]


def test_several_end_tokens_are_the_end_id_and_stop_words_of_one_token() -> None:
    inputs = plain(token_request(ENGINE, [5], Options(end_ids=(7, 8, 9))))
    assert inputs["end_id"] == [[7]] and inputs["stop_words_list"] == [[[8, 9], [1, 2]]]
    assert "stop_words_list" not in token_request(ENGINE, [5], Options(end_ids=(7,))).inputs
    with pytest.raises(Unsupported, match=r"end_ids is \(7, 8\)"):
        text_request(BLS, "hi", Options(end_ids=(7, 8)), stream=False)


def test_lookahead_is_turned_off_by_its_three_sizes() -> None:
    engine = replace(ENGINE, draft_limit=DraftLimit("lookahead", 15))
    inputs = plain(token_request(engine, [5], Options(num_draft_tokens=0)))
    names = ("window_size", "ngram_size", "verification_set_size")
    assert [inputs[f"lookahead_{name}"] for name in names] == [[[1]], [[1]], [[0]]]
    assert not any("lookahead" in n for n in token_request(engine, [5], Options()).inputs)


def test_a_model_that_always_speculates_refuses_to_be_limited() -> None:
    for asked in (0, 4):
        with pytest.raises(Unsupported, match=rf"num_draft_tokens is {asked}: (.|\n)*method: none"):
            text_request(API, "hi", Options(num_draft_tokens=asked), stream=False)


def test_a_model_that_drafts_nothing_takes_a_limit_of_nothing() -> None:
    target = replace(ENGINE, speculates=False, draft_limit=None)
    assert token_request(target, [5], Options(num_draft_tokens=0)).parameters == {}
    with pytest.raises(ConfigError, match="num_draft_tokens is 2: tensorrt_llm drafts nothing"):
        token_request(target, [5], Options(num_draft_tokens=2))


@pytest.mark.parametrize(
    ("model", "asked", "possible"),
    [(BLS, 5, "from 0 to 4"), (BLS, -1, "from 0 to 4"), (ENGINE, 2, "0 or 4")],
)
def test_a_number_that_is_never_drafted_is_refused(model: Model, asked: int, possible: str) -> None:
    with pytest.raises(ConfigError, match=f"num_draft_tokens is {asked}: .* takes {possible}"):
        token_request(replace(model, tensors=TOKENS), [5], Options(num_draft_tokens=asked))


def test_an_option_that_a_model_lacks_is_refused_and_not_dropped() -> None:
    for model, options in (
        (API, Options(bad_words=("x",))),
        (API, Options(min_tokens=3)),
        (ENGINE, Options(stop_words=("x",))),
    ):
        with pytest.raises(Unsupported, match=r"the model tensorrt_llm has no such option"):
            text_request(model, "hi", options, stream=False)


def test_a_model_that_answers_in_one_piece_is_not_asked_to_stream() -> None:
    with pytest.raises(Unsupported, match=r"cannot stream(.|\n)*serving.decoupled: true"):
        text_request(replace(API, decoupled=False), "hi", Options(), stream=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(max_tokens=10**20), "max_tokens is 1.*: must be from -2147483648 to 2147483647"),
        (Options(max_tokens=2**31), "max_tokens is 2147483648"),
        (Options(top_k=2**40), "top_k is 1099511627776"),
        (Options(seed=2**64), "seed is .*: must be from 0 to 18446744073709551615"),
        (Options(seed=-1), "seed is -1: must be from 0"),
        (Options(temperature=1e39), "temperature is 1e.39: must be a finite number"),
        (Options(temperature=float("nan")), "temperature is nan: must be a finite number"),
        (Options(stop_words=("a", "caf\udce9")), "stop_words is not UTF-8"),
    ],
)
def test_what_no_tensor_can_hold_is_refused_not_wrapped(options: Options, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        text_request(BLS, "hi", options, stream=True)
    with pytest.raises(ConfigError, match="the prompt is not UTF-8"):
        text_request(BLS, "caf\udce9", Options(), stream=True)


def test_the_largest_values_of_a_tensor_are_sent() -> None:
    request = text_request(BLS, "hi", Options(top_k=2**31 - 1, seed=2**64 - 1), stream=True)
    assert plain(request)["top_k"] == [[2**31 - 1]] and plain(request)["seed"] == [[2**64 - 1]]


def test_a_guide_becomes_upstreams_two_tensors() -> None:
    given = text_request(with_guides(BLS), "x", Options(guide=Guide("regex", "é+")), stream=False)
    assert plain(given)["guided_decoding_guide_type"] == [[b"regex"]]
    assert plain(given)["guided_decoding_guide"] == [["é+".encode()]]
    given = token_request(with_guides(ENGINE), [1], Options(guide=Guide("json")))
    assert plain(given)["guided_decoding_guide_type"] == [[b"json"]]
    assert "guided_decoding_guide" not in given.inputs


def test_a_model_without_guides_refuses_one_and_names_who_has_them() -> None:
    with pytest.raises(Unsupported, match="cannot constrain answers") as refused:
        text_request(API, "x", Options(guide=Guide("json")), stream=False)
    hint = str(refused.value.hint)
    assert "openvino" in hint and "vllm serve" in hint and "draft tokens" in hint
