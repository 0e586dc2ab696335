"""Packaged text models drive a C++ backend that refuses whatever upstream's refuses."""

import numpy as np
import pytest

from specpipe.core.contracts import Sampling
from specpipe.core.errors import Unsupported
from specpipe.engine.tensorrt.profiles import engine_releases
from specpipe.runtime.exchange import Request
from specpipe.runtime.failures import EngineError
from specpipe.serve.inputs import Options, token_request
from specpipe.speculate.decode import Limits
from tests.helpers.cpp_backend import (
    CppBackend,
    RefusedError,
    score_of,
)
from tests.helpers.packaged_gpu import END, METHODS, Serve, decode, expected, tokens

RELEASES = ("0.18.2", "0.19.0", "1.2.1")
CASES = [
    (method, release)
    for method in METHODS
    for release in RELEASES
    if (method, release) != ("lookahead", "0.18.2")  # Triton cannot configure it
]


@pytest.mark.parametrize(
    ("method", "release", "streams"),
    [(*case, True) for case in CASES] + [(method, "1.2.1", False) for method in METHODS],
)
def test_every_method_of_every_release_is_answered(
    method: str, release: str, streams: bool, serve: Serve
) -> None:
    served = serve(method, release, streams=streams)
    steps = served.answer(9)
    assert tokens(steps) == expected((1, 2, 3), 9)
    assert served.models["tensorrt_llm"].requests


@pytest.mark.parametrize(("method", "release"), CASES)
def test_all_options_of_a_request_are_tensors_of_the_release(
    method: str, release: str, serve: Serve
) -> None:
    sampling = Sampling(
        temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.1, min_tokens=2, end_ids=(END, 14), bad_words=((3, 4), (5,)), seed=7,
    )  # fmt: skip
    served = serve(method, release)
    steps = served.answer(6, sampling=sampling, bias=((3, 1.5),), log_probs=True)
    assert len(tokens(steps)) <= 6


@pytest.mark.parametrize(("method", "release"), CASES)
def test_no_draft_tokens_are_refused_where_an_engine_cannot_stop_drafting(
    method: str, release: str, serve: Serve
) -> None:
    served = serve(method, release)
    if method in ("medusa", "eagle", "redrafter"):
        with pytest.raises(Unsupported, match="in every step of every request"):
            served.answer(5, num_draft_tokens=0)
        return
    steps = served.answer(5, num_draft_tokens=0)
    assert tokens(steps) == expected((1, 2, 3), 5)
    assert steps[-1].counters.draft_tokens == 0


@pytest.mark.parametrize("method", ["none", "lookahead", "medusa"])
def test_streamed_scores_are_those_of_the_new_tokens(method: str, serve: Serve) -> None:
    """Every response of the engine has the scores of all tokens so far."""
    steps = serve(method).answer(7, log_probs=True)
    scores = [score for step in steps for score in step.log_probs]
    assert scores == pytest.approx([score_of(t, n) for n, t in enumerate(tokens(steps))])


def test_leaving_an_answer_stops_the_engine(serve: Serve) -> None:
    served = serve("medusa")
    steps = served.source.loop(Request("", (1, 2, 3), Sampling(), Limits(50)))
    next(steps)
    steps.close()
    assert len(served.models["tensorrt_llm"].stopped) == 1


@pytest.mark.parametrize(("method", "release"), [c for c in CASES if c[1] in engine_releases()])
@pytest.mark.parametrize("drafted", [None, 0])
def test_specpipes_own_client_sends_engines_what_they_take(
    method: str, release: str, drafted: int | None, serve: Serve
) -> None:
    served = serve(method, release)
    model = served.endpoint.tokens
    assert model is not None
    options = Options(5, temperature=0.5, top_k=3, seed=1, min_tokens=1, end_ids=(END, 14),
                      num_draft_tokens=drafted)  # fmt: skip
    try:
        asked = token_request(model, (1, 2, 3), options)
    except Unsupported:
        assert drafted == 0 and method in ("medusa", "eagle", "redrafter")
        return
    outputs = ["output_ids", "sequence_length"]
    answer = list(served.models["tensorrt_llm"].infer(asked.inputs, outputs, ""))
    found = [t for reply in answer for t in reply["output_ids"].reshape(-1).tolist()]
    assert found == expected((1, 2, 3), 5)


def one(value: object, kind: type) -> np.ndarray:
    return np.array([[value]], kind)


GOOD = {"input_ids": np.array([[1, 2, 3]], np.int32), "input_lengths": one(3, np.int32),
        "request_output_len": one(4, np.int32)}  # fmt: skip
SIZES = {"lookahead_window_size": one(1, np.int32), "lookahead_ngram_size": one(1, np.int32),
         "lookahead_verification_set_size": one(0, np.int32)}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_draft_tokens": one(1, np.int32)}, "unexpected inference input 'num_draft_tokens'"),
        ({"min_length": one(1, np.int32)}, "unexpected inference input 'min_length'"),
        (SIZES, "Cannot set the request lookahead decoding"),
        ({"input_ids": np.array([[1, 2]], np.int64)}, "int64, expects INT32"),
        ({"input_ids": np.array([1, 2], np.int32)}, "unexpected shape"),
        ({"input_ids": np.zeros((1, 70), np.int32), "input_lengths": one(70, np.int32)},
         "Prompt length"),
        ({"request_output_len": one(0, np.int32)}, "mMaxNewTokens"),
        ({"request_output_len": one(500, np.int32)}, "do not fit"),
        ({"input_lengths": one(2, np.int32)}, "input_lengths is 2"),
        ({"draft_input_ids": np.array([[1, 2]], np.int32)}, "Draft tokens length"),
        ({"draft_input_ids": np.zeros((1, 0), np.int32)}, "tokens are empty"),
        ({"stop_words_list": np.array([[[5, 6], [3, -1]]], np.int32)}, "out-of-bound"),
        ({"runtime_top_p": one(1.5, np.float32)}, "runtime_top_p is 1.5"),
        ({"stop": one(True, np.bool_)}, "request ID is not provided"),
    ],
)  # fmt: skip
def test_the_stand_in_refuses_what_upstream_refuses(
    changes: dict[str, np.ndarray], words: str, serve: Serve
) -> None:
    engine = serve("none").models["tensorrt_llm"]
    assert list(engine.infer(GOOD, ["output_ids", "sequence_length"], ""))
    with pytest.raises(RefusedError, match=words):
        list(engine.infer({**GOOD, **changes}, ["output_ids", "sequence_length"], ""))


def test_the_stand_in_streams_only_from_decoupled_models(serve: Serve) -> None:
    engine = serve("none", streams=False).models["tensorrt_llm"]
    with pytest.raises(RefusedError, match="Streaming is only supported"):
        list(engine.infer({**GOOD, "streaming": one(True, np.bool_)}, ["output_ids"], ""))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("lookahead_window_size", "", "lookahead parameters are not specified"),
        ("gpt_model_type", "", "Invalid gpt_model_type"),
        ("decoding_mode", "", "the backend would take its default"),
        ("enable_kv_cache_reuse", "${enable_kv_cache_reuse}", "placeholder"),
        ("tokenizer_dir", None, "tokenizer_dir is not in the file"),
    ],
)
def test_the_stand_in_does_not_load_with_parameters_that_upstream_cannot_use(
    name: str, value: str | None, words: str, serve: Serve
) -> None:
    config = serve("lookahead").models["tensorrt_llm"].config
    if value is None:
        del config.parameters[name]
    else:
        config.parameters[name].string_value = value
    with pytest.raises(RefusedError, match=words):
        CppBackend(config, decode)


def test_a_refusal_of_the_engine_reaches_the_client_in_its_words(serve: Serve) -> None:
    with pytest.raises(EngineError, match="Prompt length"):
        served = serve("none")
        list(served.source.loop(Request("", tuple([1] * 70), Sampling(), Limits(5))))
