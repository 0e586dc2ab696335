"""A real tritonserver with the five models: answers, streams, options, refusals, cancellation."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from tritonclient.utils import InferenceServerException

from specpipe.core.errors import ConfigError, StageFailed
from specpipe.repository.description import read_endpoint
from specpipe.repository.signature import MODELS
from specpipe.serve.client import Options, collect, unshared
from specpipe.validate.reference import Reference
from tests.helpers import raw_requests as raw
from tests.helpers.models import make_heads
from tests.helpers.servers import PROMPT, TEXT_MODELS, Served, asked, expected
from tests.helpers.waiting import until

pytestmark = pytest.mark.e2e
HITS = "specpipe_prefix_cache_hits_total"


def test_the_five_models_are_ready(server: Served) -> None:
    import tritonclient.grpc as grpc

    client = grpc.InferenceServerClient(server.url)
    assert all(client.is_model_ready(model) for model in MODELS)
    client.close()


@TEXT_MODELS
def test_an_answer_is_that_of_plain_decoding_streamed_or_whole(model: str, server: Served) -> None:
    pieces = raw.stream(server.url, model, asked(stream=True))
    assert len(pieces) > 1 and raw.text(pieces) == expected(server)
    for values in (asked(stream=False), asked()):
        (whole,) = raw.stream(server.url, model, values)
        assert raw.text([whole]) == expected(server)
        assert whole.as_numpy("text_output").shape == (1,)


@TEXT_MODELS
def test_the_prompt_is_repeated_unless_it_is_excluded(model: str, server: Served) -> None:
    values = {"text_input": PROMPT, "max_tokens": 10}
    (whole,) = raw.stream(server.url, model, values)
    assert raw.text([whole]) == PROMPT + expected(server, 10)


def test_a_request_limits_drafts_by_a_tensor_or_a_parameter(server: Served) -> None:
    for model, by_tensor in (("tensorrt_llm_bls", True), ("tensorrt_llm_bls", False),
                             ("ensemble", False)):  # fmt: skip
        for drafts in (0, 1, 3):
            limit = {"num_draft_tokens": drafts}
            values = asked(return_perf_metrics=True, **(limit if by_tensor else {}))
            results = raw.stream(server.url, model, values, parameters={} if by_tensor else limit)
            assert raw.text(results) == expected(server)
            assert (raw.value(results[-1], "total_draft_tokens") > 0) == (drafts > 0)
    error = raw.stream(server.url, "ensemble", asked(), parameters={"num_draft_tokens": "few"})[-1]
    assert error.message().startswith("INVALID_ARG: the parameter num_draft_tokens is 'few'")


def test_a_server_says_how_it_is_called(server: Served) -> None:
    assert server.client.endpoint == read_endpoint(server.workspace.repository)
    assert server.client.endpoint.chats and server.client.endpoint.template is None
    for model in ("ensemble", "tensorrt_llm_bls"):
        for drafts in (0, None):
            options = Options(max_tokens=40, num_draft_tokens=drafts)
            answer = server.client.generate(PROMPT, options, model=model)
            assert answer.text == expected(server)
            assert (answer.acceptance.draft_tokens > 0) == (drafts is None)
            assert answer.output_tokens == len(server.plain(PROMPT, 40))


@TEXT_MODELS
def test_performance_figures_are_those_of_the_whole_request(model: str, server: Served) -> None:
    results = raw.stream(server.url, model, asked(stream=True, return_perf_metrics=True,
                         return_num_input_tokens=True, return_num_output_tokens=True))  # fmt: skip
    last = results[-1]
    drafted, accepted = (
        raw.value(last, n) for n in ("total_draft_tokens", "total_accepted_draft_tokens")
    )
    assert drafted >= accepted and drafted > 3
    assert raw.value(last, "acceptance_rate") == pytest.approx(accepted / drafted)
    times = [raw.value(last, f"{n}_time_ns")
             for n in ("arrival", "first_scheduled", "first_token", "last_token")]  # fmt: skip
    assert times == sorted(times) and times[0] > 0
    tokens = server.plain(PROMPT, 40)
    assert raw.value(last, "num_output_tokens") == len(tokens)
    assert raw.value(last, "num_input_tokens") == len(server.tokenizer.encode(PROMPT, 100))
    assert raw.value(last, "kv_cache_alloc_total_blocks") >= 1
    assert raw.value(results[0], "total_draft_tokens") <= drafted
    assert all(r.as_numpy("total_draft_tokens") is None for r in results[1:-1])


@TEXT_MODELS
def test_log_probabilities_come_for_every_token(model: str, server: Served) -> None:
    (whole,) = raw.stream(server.url, model, asked(return_log_probs=True))
    scores = whole.as_numpy("output_log_probs")
    assert scores.shape == (1, 1, len(server.plain(PROMPT, 40))) and (scores <= 0).all()
    assert raw.value(whole, "cum_log_probs") == pytest.approx(scores.sum(), rel=1e-4)
    pieces = raw.stream(server.url, model, asked(return_log_probs=True, stream=True))
    parts = np.concatenate([r.as_numpy("output_log_probs").reshape(-1) for r in pieces])
    np.testing.assert_allclose(parts, scores.reshape(-1), atol=1e-3)


@TEXT_MODELS
def test_stop_words_end_the_answer_and_stay_in_it(model: str, server: Served) -> None:
    answer = expected(server)
    word = next(answer[i : i + 2] for i in range(8, 30) if answer.find(answer[i : i + 2]) == i)
    kept = answer[: answer.index(word) + 2]
    for stream in (True, False):
        got = raw.stream(server.url, model, asked(stop_words=["never", word], stream=stream))
        assert raw.text(got) == kept


def test_end_id_min_tokens_and_bad_words_are_honoured(server: Served) -> None:
    tokens = server.plain(PROMPT, 40)
    end = tokens[5]
    first = tokens.index(end)
    got = raw.stream(server.url, "ensemble", asked(end_id=end))
    assert raw.text(got) == server.tokenizer.decode(tokens[:first])
    held = raw.stream(server.url, "ensemble", asked(end_id=end, min_tokens=20))
    assert raw.text(held) == expected(server, end_id=end, min_tokens=20)
    word = server.tokenizer.decode([tokens[0]])
    banned = server.tokenizer.words([word])
    got = raw.stream(server.url, "ensemble", asked(bad_words=[word]))
    assert raw.text(got) == expected(server, bad_words=banned)


def test_penalties_are_honoured(server: Served) -> None:
    for name, number in (("repetition_penalty", 1.5), ("presence_penalty", 2.0),
                         ("frequency_penalty", 1.0)):  # fmt: skip
        got = raw.stream(server.url, "ensemble", asked(**{name: number}))
        assert raw.text(got) == expected(server, **{name: number}), name
        assert raw.text(got) != expected(server), name


def test_a_seed_makes_sampling_repeatable(server: Served) -> None:
    def answer(seed: int) -> str:
        values = asked(top_p=0.95, temperature=1.5, seed=np.array([[seed]], np.uint64))
        return raw.text(raw.stream(server.url, "ensemble", values))

    assert answer(1) == answer(1) != answer(2)


@TEXT_MODELS
@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"text_input": ""}, "INVALID_ARG", "the prompt is empty"),
        ({"text_input": b"ab\xff"}, "INVALID_ARG", "not valid UTF-8: byte 2"),
        ({"text_input": "x" * 1_000_000}, "INVALID_ARG", "1000000 bytes"),
        ({"text_input": PROMPT * 10}, "INVALID_ARG", "at most 100 .max_input_len"),
        ({"max_tokens": 0}, "INVALID_ARG", "max_tokens is 0: must be at least 1"),
        ({"max_tokens": 5000}, "INVALID_ARG", "max_tokens is 5000: with a prompt of"),
        ({"temperature": float("nan"), "top_k": 5}, "INVALID_ARG", "temperature is nan"),
        ({"top_p": 7.0}, "INVALID_ARG", "top_p is 7.0: must be above 0 and at most 1"),
        ({"repetition_penalty": -1.0}, "INVALID_ARG", "repetition_penalty is -1.0"),
        ({"repetition_penalty": 1e-40}, "INVALID_ARG", "must be from 0.001 to 1000"),
        ({"presence_penalty": 3e38}, "INVALID_ARG", "must be from -1000000 to 1000000"),
        ({"frequency_penalty": -3e38}, "INVALID_ARG", "must be from -1000000 to 1000000"),
        ({"stop_words": ["w"] * 1001}, "INVALID_ARG", "stop_words has 1001 words: at most 1000"),
        ({"bad_words": ["w" * 32_001]}, "INVALID_ARG", "bad_words has 32001 bytes: at most 32000"),
        ({"end_id": 10**6}, "INVALID_ARG", "end_id is 1000000"),
        ({"beam_width": 4}, "UNSUPPORTED", "beam_width is 4: beam search is not supported"),
        ({"return_context_logits": True}, "UNSUPPORTED", "context logits"),
        ({"embedding_bias_words": ["x"]}, "UNSUPPORTED", "embedding bias"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_sentence(
    model: str, values: dict, code: str, words: str, server: Served
) -> None:
    import re

    error = raw.stream(server.url, model, asked(**values))[-1]
    assert isinstance(error, Exception)
    assert error.message().startswith(f"{code}: ")
    assert re.search(words, error.message()) and "Traceback" not in error.message()
    assert "\n" not in error.message()


def test_too_many_draft_tokens_are_refused(server: Served) -> None:
    error = raw.stream(server.url, "tensorrt_llm_bls", asked(num_draft_tokens=9))[-1]
    assert error.message().startswith("INVALID_ARG: num_draft_tokens is 9: must be from 0 to 3")


def test_unknown_and_missing_tensors_are_refused(server: Served) -> None:
    for values, words in (
        (asked(frobnicate=1), "unexpected inference input 'frobnicate'"),
        ({"text_input": "x"}, "max_tokens"),
        (asked(max_tokens=np.array([[5]], np.int64)), "INT64"),
        (asked(num_draft_tokens=1), "unexpected inference input 'num_draft_tokens'"),
    ):
        error = raw.stream(server.url, "ensemble", values)[-1]
        assert isinstance(error, Exception) and words in error.message()


def test_http_generate_works_whole_and_streamed(server: Served) -> None:
    url = f"http://{server.endpoint.address.http}/v2/models/ensemble"
    whole = requests.post(f"{url}/generate", json=asked(), timeout=60).json()
    assert whole["text_output"] == expected(server)
    lines = requests.post(f"{url}/generate_stream", json=asked(stream=True), timeout=60).text
    assert lines.count("data: ") > 1


def test_answers_do_not_mix_under_load(server: Served) -> None:
    texts = [f"{PROMPT} {n}" for n in range(5)]
    alone = [server.client.generate(t, Options(max_tokens=30)).text for t in texts]
    crowded: dict[int, str] = {}

    def one(n: int) -> None:
        crowded[n] = collect(server.client.stream(texts[n], Options(max_tokens=30))).text

    raw.together(5, one)
    assert [crowded[n] for n in range(5)] == alone


def token_request(server: Served, **more: object) -> dict[str, object]:
    """Return the tensors of a request to the model that takes tokens."""
    ids = server.tokenizer.encode(PROMPT, 100)
    return {"input_ids": np.array([ids], np.int32), "input_lengths": len(ids), **more}


def stop(server: Served, request_id: str) -> None:
    """End every request with an id."""
    values = token_request(server, request_output_len=1, stop=True)
    raw.stream(server.url, "tensorrt_llm", values, request_id=request_id)


def test_a_full_queue_answers_unavailable_and_recovers(server: Served) -> None:
    """Two requests decode and three wait, which is all that there is room for."""
    long = token_request(server, request_output_len=3000, streaming=True)
    server.await_idle()
    with ThreadPoolExecutor(5) as threads:
        running = [
            threads.submit(raw.stream, server.url, "tensorrt_llm", long, request_id="long")
            for _ in range(5)
        ]
        until(lambda: (server.heartbeat().active, server.heartbeat().waiting) == (2, 3))
        error = raw.stream(server.url, "tensorrt_llm_bls", asked())[-1]
        assert error.message().startswith("UNAVAILABLE: the server is busy")
        with pytest.raises(StageFailed, match="busy: 3 requests are waiting"):
            server.client.generate(PROMPT, Options(max_tokens=4))
        stop(server, "long")
    assert not any(isinstance(request.result()[-1], Exception) for request in running)
    assert raw.text(raw.stream(server.url, "ensemble", asked())) == expected(server)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "tensorrt_llm"])
def test_a_cancelled_stream_frees_the_engine(model: str, server: Served) -> None:
    before = server.metrics("specpipe_output_tokens_total")["tensorrt_llm"]
    values = asked(max_tokens=3000, stream=True, end_id=-1)
    if model == "tensorrt_llm":
        values = token_request(server, request_output_len=3000, streaming=True)
    raw.stream(server.url, model, values, take=3)
    server.await_idle()
    stopped = server.metrics("specpipe_output_tokens_total")["tensorrt_llm"]
    assert stopped - before < 2500


def test_prometheus_has_acceptance_by_model_and_method(server: Served) -> None:
    raw.stream(server.url, "ensemble", asked(max_tokens=1000, end_id=-1))
    counters = ("steps", "output_tokens", "draft_tokens", "accepted_draft_tokens")
    names = (*(f"{name}_total" for name in counters), "acceptance_rate", "acceptance_length")
    steps, output, drafted, accepted, rate, length = (
        server.metrics(f"specpipe_{name}")["tensorrt_llm"] for name in names
    )
    assert accepted > 0
    assert rate == pytest.approx(accepted / drafted) and length == pytest.approx(output / steps)


def test_prometheus_has_the_requests_in_flight_while_they_are(server: Served) -> None:
    values = asked(max_tokens=3000, stream=True, end_id=-1)
    client = threading.Thread(target=raw.stream, args=(server.url, "ensemble", values))
    server.await_in_flight("ensemble", 0)
    client.start()
    server.await_in_flight("ensemble", 1)
    client.join()
    server.await_in_flight("ensemble", 0)


def test_prompts_of_different_salts_share_no_kv_blocks(server: Served) -> None:
    def found(salt: str | None) -> float:
        """Send a prompt of 80 tokens; return how many of them are not read again."""
        server.await_idle()
        before = server.metrics(HITS)["tensorrt_llm"]
        options = Options(max_tokens=2, cache_salt=salt)
        assert list(server.client.stream_tokens(range(2, 82), options))
        server.await_idle()
        return server.metrics(HITS)["tensorrt_llm"] - before

    assert [found(salt) for salt in (None, None, "a", "a", "b", None)] == [0, 64, 0, 64, 0, 64]
    model = server.client.endpoint.text
    assert unshared(Options(), model).cache_salt != unshared(Options(), model).cache_salt


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "tensorrt_llm"])
@pytest.mark.parametrize("salt", [5, "x" * 257])
def test_a_salt_is_a_short_text(model: str, salt: object, server: Served) -> None:
    tokens = token_request(server, request_output_len=2)
    values = tokens if model == "tensorrt_llm" else asked()
    error = raw.stream(server.url, model, values, parameters={"cache_salt": salt})[-1]
    assert isinstance(error, Exception) and "cache_salt must be a text" in error.message()


def test_tokens_in_tokens_out(server: Served) -> None:
    ids = server.tokenizer.encode(PROMPT, 100)
    base = {"input_ids": np.array([ids], np.int32), "input_lengths": len(ids),
            "request_output_len": 20}  # fmt: skip
    (whole,) = raw.stream(server.url, "tensorrt_llm", base)
    tokens = server.plain(PROMPT, 20, end_id=-1)
    assert whole.as_numpy("output_ids").tolist() == [[[*ids, *tokens]]]
    assert whole.as_numpy("sequence_length").tolist() == [[len(ids) + 20]]
    steps = raw.stream(server.url, "tensorrt_llm", {**base, "streaming": True})
    assert [t for r in steps for t in r.as_numpy("output_ids")[0][0].tolist()] == tokens


def test_a_stop_request_ends_another_one_by_its_id(server: Served) -> None:
    values = token_request(server, request_output_len=3000, streaming=True)
    results: list = []
    begun = threading.Event()

    def long() -> None:
        results.extend(raw.stream(server.url, "tensorrt_llm", values, request_id="to-stop",
                                  on_result=begun.set))  # fmt: skip

    thread = threading.Thread(target=long)
    thread.start()
    assert begun.wait(60)
    stop(server, "to-stop")
    thread.join()
    assert not any(isinstance(r, Exception) for r in results)
    assert sum(len(r.as_numpy("output_ids")[0][0]) for r in results) < 3000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"input_lengths": 99}, "input_lengths is 99: must be from 1 to 2"),
        ({"input_ids": np.array([[5, 999999]], np.int32)}, "input_ids has 999999"),
        ({"draft_input_ids": np.array([[5]], np.int32)}, "drafts of the client's own"),
        ({"stop": True}, "must carry the id"),
    ],
)
def test_bad_tokens_are_refused(values: dict, words: str, server: Served) -> None:
    base = {"input_ids": np.array([[5, 6]], np.int32), "input_lengths": 2, "request_output_len": 4}
    error = raw.stream(server.url, "tensorrt_llm", {**base, **values})[-1]
    assert isinstance(error, Exception) and words in error.message()


def test_preprocessing_and_postprocessing_serve_clients_that_drive_the_engine(
    server: Served,
) -> None:
    values = {"QUERY": PROMPT, "REQUEST_OUTPUT_LEN": 8, "STOP_WORDS_DICT": ["fox"]}
    before = raw.unary(server.url, "preprocessing", values)
    ids = before.as_numpy("INPUT_ID")
    assert ids[0].tolist() == server.tokenizer.encode(PROMPT, 100)
    assert before.as_numpy("STOP_WORDS_IDS").shape[:2] == (1, 2)
    assert raw.value(before, "OUT_END_ID") == server.tokenizer.end_ids[0]
    after = raw.unary(server.url, "postprocessing", {
        "TOKENS_BATCH": ids[None], "SEQUENCE_LENGTH": np.array([[ids.shape[1]]], np.int32),
    })  # fmt: skip
    assert after.as_numpy("OUTPUT")[0].decode() == PROMPT


UPSTREAM = {  # what upstream's end_to_end_grpc_client.py sends by default, name by name
    "beam_width": 1, "temperature": 1.0, "num_return_sequences": 1,
}  # fmt: skip


@TEXT_MODELS
@pytest.mark.parametrize("stream", [True, False])
def test_the_tensors_of_upstreams_client_get_the_greedy_answer(
    model: str, stream: bool, server: Served
) -> None:
    values = asked(stream=stream, **UPSTREAM)
    assert raw.text(raw.stream(server.url, model, values)) == expected(server)


def test_without_decoupling_plain_unary_calls_work(serve) -> None:
    with serve(serving={"decoupled": False}) as server:
        answers: list[str] = []

        def one(_: int) -> None:
            answers.append(raw.text([raw.unary(server.url, "ensemble", asked())]))

        raw.together(5, one)
        assert answers == [expected(server)] * 5
        with pytest.raises(InferenceServerException, match="UNSUPPORTED: .*serving.decoupled") as e:
            raw.unary(server.url, "ensemble", asked(stream=True))
        assert e.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_draft_model_that_is_the_target_is_always_right(serve, tiny: Path) -> None:
    speculation = {"method": "draft_model", "draft": {"model": str(tiny)}, "num_draft_tokens": 3,
                   "draft_length": "fixed"}  # fmt: skip
    with serve(speculation=speculation) as server:
        values = asked(stream=True, return_perf_metrics=True)
        results = raw.stream(server.url, "ensemble", values)
        assert raw.text(results) == expected(server)
        assert raw.value(results[-1], "acceptance_rate") == 1.0


def test_medusa_heads_give_the_same_answer(serve, tmp_path: Path) -> None:
    make_heads(tmp_path, seed=2)
    speculation = {"method": "medusa", "heads": str(tmp_path), "tree": [[0, 0], [1]],
                   "draft_length": "fixed"}  # fmt: skip
    with serve(speculation=speculation) as server:
        values = asked(stream=True, return_perf_metrics=True)
        results = raw.stream(server.url, "tensorrt_llm_bls", values)
        assert raw.text(results) == expected(server)
        assert raw.value(results[-1], "total_draft_tokens") > 0


@pytest.mark.parametrize("streaming", [True, False])
def test_the_logits_after_every_token_of_a_prompt_are_those_of_transformers(
    streaming: bool, server: Served, tiny: Path
) -> None:
    """Streamed, they come in several responses before the first token."""
    tokens = np.random.default_rng(1).integers(3, 300, 100).tolist()
    values = {"input_ids": np.array([tokens], np.int32), "input_lengths": len(tokens),
              "request_output_len": 1, "return_context_logits": True,
              "streaming": streaming}  # fmt: skip
    results = raw.stream(server.url, "tensorrt_llm", values)
    found = [rows for result in results if (rows := result.as_numpy("context_logits")) is not None]
    assert len(found) == (2 if streaming else 1)
    rows, expected = np.concatenate(found, axis=1)[0], Reference(tiny).logits(tokens)
    np.testing.assert_allclose(rows, expected, atol=1e-3)
    assert results[-1].as_numpy("output_ids").reshape(-1)[-1] == expected[-1].argmax()


def test_a_damaged_repository_does_not_start_and_says_why(server: Served, tmp_path: Path) -> None:
    import shutil

    from specpipe.serve.address import free_address
    from specpipe.serve.tritonserver import start_server

    copy = tmp_path / "repository"
    shutil.copytree(server.workspace.repository, copy)
    (copy / "preprocessing/1/tokenizer/tokenizer.json").write_text("{")
    with pytest.raises(StageFailed, match="no usable tokenizer"):
        with start_server(copy, free_address(), tmp_path / "log"):
            pass


def test_the_client_refuses_like_the_server(server: Served) -> None:
    with pytest.raises(ConfigError, match="max_tokens is 5000"):
        server.client.generate(PROMPT, Options(max_tokens=5000))
