"""The GPU repository's loop over draft and target, in a real tritonserver, with CPU engines.

Everything is as it is packaged for GPUs but for `tensorrt_llm` and `tensorrt_llm_draft`: the same
tensors, answered by the CPU engine.
"""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from specpipe.core.errors import Unsupported
from specpipe.repository.description import read_endpoint
from specpipe.serve.client import Options, collect
from specpipe.validate.reference import Reference
from tests.helpers import raw_requests as raw
from tests.helpers.servers import PROMPT, TEXT_MODELS, Served, asked, cli_generate, expected

pytestmark = pytest.mark.e2e


@pytest.fixture
def server(bls_server: Served) -> Served:
    return bls_server


@pytest.fixture(scope="module")
def twin(serve, tiny: Path) -> Iterator[Served]:
    """Return a server whose draft is the target itself, and which answers in one piece."""
    with serve(
        speculation={"method": "draft_model", "draft": {"model": str(tiny)}, "num_draft_tokens": 3},
        serving={"loop": "bls", "decoupled": False, "instances": 1},
    ) as served:
        yield served


@TEXT_MODELS
@pytest.mark.parametrize("stream", [True, False, None])
def test_the_answer_is_that_of_plain_decoding(
    model: str, stream: bool | None, server: Served
) -> None:
    values = asked() if stream is None else asked(stream=stream)
    results = raw.stream(server.url, model, values)
    assert raw.text(results) == expected(server)
    assert (len(results) > 1) == bool(stream)


def test_a_request_may_draft_less(server: Served) -> None:
    for count in (0, 1, 3):
        values = asked(num_draft_tokens=count, return_perf_metrics=True)
        results = raw.stream(server.url, "tensorrt_llm_bls", values)
        assert raw.text(results) == expected(server)
        assert (raw.value(results[-1], "total_draft_tokens") > 0) == (count > 0)


@TEXT_MODELS
def test_figures_are_those_of_the_whole_request(model: str, server: Served) -> None:
    results = raw.stream(server.url, model, asked(stream=True, return_perf_metrics=True,
                         return_num_input_tokens=True, return_num_output_tokens=True))  # fmt: skip
    last, tokens = results[-1], server.plain(PROMPT, 40)
    drafted, accepted = (raw.value(last, f"total_{n}draft_tokens") for n in ("", "accepted_"))
    assert drafted > 3 and raw.value(last, "acceptance_rate") == pytest.approx(accepted / drafted)
    assert len(results) <= len(tokens) - accepted  # at most one response a call of the target
    assert raw.value(last, "num_output_tokens") == len(tokens)
    assert raw.value(last, "num_input_tokens") == len(server.tokenizer.encode(PROMPT, 100))
    times = [raw.value(last, f"{n}_time_ns")
             for n in ("arrival", "first_scheduled", "first_token", "last_token")]  # fmt: skip
    assert times == sorted(times) and times[0] > 0


def test_log_probabilities_are_the_targets(server: Served) -> None:
    (whole,) = raw.stream(server.url, "ensemble", asked(return_log_probs=True))
    scores = whole.as_numpy("output_log_probs")
    assert scores.shape == (1, 1, len(server.plain(PROMPT, 40))) and (scores <= 0).all()


@TEXT_MODELS
def test_stop_words_of_several_tokens_end_the_answer(model: str, server: Served) -> None:
    answer = expected(server)
    word = next(answer[i : i + 4] for i in range(8, 30) if answer.find(answer[i : i + 4]) == i)
    assert len(server.tokenizer.words([word])[0]) > 1
    kept = answer[: answer.index(word) + 4]
    for stream in (True, False):
        got = raw.stream(server.url, model, asked(stop_words=["never", word], stream=stream))
        assert raw.text(got) == kept


def test_options_hold_in_every_step(server: Served) -> None:
    tokens = server.plain(PROMPT, 40)
    end = tokens[5]
    for options in (
        {"end_id": end}, {"end_id": end, "min_tokens": 20}, {"repetition_penalty": 1.5},
        {"presence_penalty": 2.0}, {"frequency_penalty": 1.0},
    ):  # fmt: skip
        got = raw.stream(server.url, "ensemble", asked(**options))
        assert raw.text(got) == expected(server, **options), options
    word = server.tokenizer.decode([tokens[0]])
    banned = server.tokenizer.words([word])
    got = raw.stream(server.url, "ensemble", asked(bad_words=[word]))
    assert raw.text(got) == expected(server, bad_words=banned)


def test_an_embedding_bias_holds_in_every_step(server: Served) -> None:
    weights = np.array([[100.0]], np.float32)
    values = asked(embedding_bias_words=["z"], embedding_bias_weights=weights, max_tokens=12)
    assert raw.text(raw.stream(server.url, "tensorrt_llm_bls", values)) == "z" * 12


def test_a_seed_makes_sampling_repeatable(server: Served) -> None:
    def answer(seed: int, *, logits: bool) -> str:
        values = asked(top_p=0.95, temperature=1.5, seed=np.array([[seed]], np.uint64),
                       use_draft_logits=logits)  # fmt: skip
        return raw.text(raw.stream(server.url, "tensorrt_llm_bls", values))

    for logits in (True, False):
        assert answer(1, logits=logits) == answer(1, logits=logits) != answer(2, logits=logits)


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"num_draft_tokens": 9}, "INVALID_ARG", "must be from 0 to 3"),
        ({"embedding_bias_words": ["x"]}, "INVALID_ARG", "each word needs one"),
        ({"beam_width": 4}, "UNSUPPORTED", "beam search is not supported"),
        ({"lora_task_id": np.array([[1]], np.uint64)}, "UNSUPPORTED", "LoRA"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_one_sentence(
    values: dict, code: str, words: str, server: Served
) -> None:
    error = raw.stream(server.url, "tensorrt_llm_bls", asked(**values))[-1]
    assert isinstance(error, Exception) and error.message().startswith(f"{code}: ")
    assert words in error.message() and "\n" not in error.message()


def test_answers_do_not_mix_under_load(server: Served) -> None:
    texts = [f"{PROMPT} {n}" for n in range(3)]
    alone = [server.client.generate(t, Options(max_tokens=30)).text for t in texts]
    crowded: dict[int, str] = {}

    def one(n: int) -> None:
        crowded[n] = collect(server.client.stream(texts[n], Options(max_tokens=30))).text

    raw.together(3, one)
    assert [crowded[n] for n in range(3)] == alone


def test_a_full_queue_answers_unavailable_and_recovers(server: Served) -> None:
    """Triton queues a request until a process takes it, so both are busy before the ten come."""
    outcomes: list[str] = []
    busy = [threading.Event(), threading.Event()]
    start = threading.Barrier(10)

    def send(values: dict[str, object], **more: Callable[[], object]) -> None:
        last = raw.stream(server.url, "tensorrt_llm_bls", values, **more)[-1]
        outcomes.append(last.message() if isinstance(last, Exception) else "ok")

    def one(n: int) -> None:
        if n < len(busy):
            send(asked(max_tokens=600, end_id=-1, stream=True), on_result=busy[n].set)
        elif all(event.wait(60) for event in busy):
            send(asked(), ready=start.wait)

    raw.together(12, one)
    assert len(outcomes) == 12
    assert outcomes.count("ok") >= 5  # two processes and three places in the queue
    assert sum("queue size" in o for o in outcomes) == 12 - outcomes.count("ok") > 0, outcomes
    assert raw.text(raw.stream(server.url, "ensemble", asked())) == expected(server)


@TEXT_MODELS
def test_a_client_that_leaves_stops_both_engines(model: str, server: Served) -> None:
    engines = ("tensorrt_llm", "tensorrt_llm_draft")

    def calls() -> list[float]:
        found = server.metrics("nv_inference_request_success")
        return [found[engine] for engine in engines]

    before = calls()
    raw.stream(server.url, model, asked(max_tokens=3000, stream=True, end_id=-1), take=3)
    server.await_in_flight(model, 0)
    made = [after - old for after, old in zip(calls(), before, strict=True)]
    assert all(0 < number < 3000 / 4 for number in made)  # a call gives four tokens at most


def test_prometheus_adds_up_what_all_processes_counted(server: Served) -> None:
    names = ("steps", "output_tokens", "draft_tokens", "accepted_draft_tokens")

    def totals() -> list[float]:
        return [server.metrics(f"specpipe_{n}_total")["tensorrt_llm_bls"] for n in names]

    raw.stream(server.url, "tensorrt_llm_bls", asked())
    server.await_in_flight("tensorrt_llm_bls", 0)  # a request is counted after its last response
    before = totals()
    figures = []

    def one(_: int) -> None:
        values = asked(return_perf_metrics=True)
        figures.extend(raw.stream(server.url, "tensorrt_llm_bls", values))

    raw.together(4, one)
    server.await_in_flight("tensorrt_llm_bls", 0)
    gained = [after - old for after, old in zip(totals(), before, strict=True)]
    assert gained[1] == 4 * len(server.plain(PROMPT, 40))
    assert gained[2] == sum(raw.value(f, "total_draft_tokens") for f in figures)
    assert gained[3] == sum(raw.value(f, "total_accepted_draft_tokens") for f in figures)
    steps, output, drafted, accepted = totals()
    rate, length = (
        server.metrics(f"specpipe_acceptance_{n}")["tensorrt_llm_bls"] for n in ("rate", "length")
    )
    assert rate == pytest.approx(accepted / drafted) and length == pytest.approx(output / steps)


def test_a_twin_of_the_target_is_always_right(twin: Served) -> None:
    for more in ({}, {"top_p": 0.9, "temperature": 1.3, "use_draft_logits": True}):
        values = asked(return_perf_metrics=True, **more)
        result = raw.unary(twin.url, "tensorrt_llm_bls", values)
        assert raw.value(result, "acceptance_rate") == 1.0
        assert raw.value(result, "total_draft_tokens") > 20
        if not more:
            assert raw.text([result]) == expected(twin)


def test_a_server_that_answers_in_one_piece_refuses_to_stream(twin: Served) -> None:
    with pytest.raises(InferenceServerException, match="serving.decoupled"):
        raw.unary(twin.url, "ensemble", asked(stream=True))
    with pytest.raises(Unsupported, match="serving.decoupled"):
        list(twin.client.stream(PROMPT, Options(max_tokens=4)))
    assert twin.client.generate(PROMPT, Options(max_tokens=40)).text == expected(twin)


def test_the_client_goes_by_what_the_server_says_of_itself(server: Served) -> None:
    endpoint, client = server.client.endpoint, server.client
    assert endpoint == read_endpoint(server.workspace.repository)
    for model in ("ensemble", "tensorrt_llm_bls"):
        for count in (0, 2, 3):
            answer = client.generate(
                PROMPT, Options(max_tokens=40, num_draft_tokens=count), model=model
            )
            assert answer.text == expected(server)
            assert (answer.acceptance.draft_tokens > 0) == (count > 0)
    (piece,) = client.stream_tokens(server.tokenizer.encode(PROMPT, 100), Options(max_tokens=40))
    assert list(piece.tokens) == server.plain(PROMPT, 40) and not piece.acceptance.draft_tokens
    assert endpoint.tokens is not None and not endpoint.tokens.speculates


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_draft"])
def test_an_engine_that_is_not_decoupled_refuses_to_stream(model: str, server: Served) -> None:
    """The C++ backend's rule and words."""
    values = {"input_ids": np.array([[5, 6]], np.int32), "input_lengths": 2,
              "request_output_len": 4, "streaming": True}  # fmt: skip
    with pytest.raises(InferenceServerException, match="only supported if model is deployed using"):
        raw.unary(server.url, model, values)


@pytest.mark.parametrize("exclude", [None, False, True])
def test_an_engine_repeats_the_prompt_unless_it_is_excluded(
    exclude: bool | None, server: Served
) -> None:
    prompt = server.tokenizer.encode(PROMPT, 100)
    values = {"input_ids": np.array([prompt], np.int32), "input_lengths": len(prompt),
              "request_output_len": 5, "return_num_output_tokens": True}  # fmt: skip
    if exclude is not None:
        values["exclude_input_in_output"] = exclude
    result = raw.unary(server.url, "tensorrt_llm", values)
    echo = [] if exclude else prompt
    assert result.as_numpy("output_ids")[0][0].tolist() == [*echo, *server.plain(PROMPT, 5)]
    assert raw.value(result, "sequence_length") == len(echo) + 5


def test_an_engine_ignores_parameters_that_it_does_not_know(server: Served) -> None:
    values = {"input_ids": np.array([[5, 6]], np.int32), "input_lengths": 2,
              "request_output_len": 4, "exclude_input_in_output": True}  # fmt: skip
    answers = [
        raw.stream(server.url, "tensorrt_llm", values, parameters=parameters)[-1]
        for parameters in ({}, {"num_draft_tokens": 99, "frobnicate": "yes"})
    ]
    first, second = (a.as_numpy("output_ids").tolist() for a in answers)
    assert first == second


def drive(server: Served, model: str, tokens: list[int], count: int, draft: list[int]) -> list[int]:
    """Call an engine as upstream's speculative client does; return prompt and new tokens."""
    values = {
        "input_ids": np.array([tokens], np.int32), "input_lengths": len(tokens),
        "request_output_len": count, "beam_width": 1, "temperature": 1.0, "pad_id": 0,
        "end_id": server.tokenizer.end_ids[0],
        "bad_words_list": np.zeros((1, 2, 0), np.int32),
        "stop_words_list": np.zeros((1, 2, 0), np.int32),
    }  # fmt: skip
    if draft:
        values["draft_input_ids"] = np.array([draft], np.int32)
    result = raw.unary(server.url, model, values)
    assert {"cum_log_probs", "output_log_probs"} <= {o.name for o in result.get_response().outputs}
    found: list[int] = result.as_numpy("output_ids")[0][0].tolist()
    return found[: result.as_numpy("sequence_length")[0][0]]


def test_a_client_that_drives_both_engines_itself_gets_the_same_answer(server: Served) -> None:
    """The loop of upstream's e2e_grpc_speculative_decoding_client.py, without its texts."""
    prompt = server.tokenizer.encode(PROMPT, 100)
    tokens, end = list(prompt), len(prompt) + 20
    while len(tokens) < end:
        count = min(3, end - len(tokens) - 1)
        draft = drive(server, "tensorrt_llm_draft", tokens, count, []) if count else tokens
        tokens = drive(server, "tensorrt_llm", tokens, len(draft[len(tokens) :]) + 1,
                       draft[len(tokens) :])  # fmt: skip
    assert tokens[len(prompt) :] == server.plain(PROMPT, 20)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"draft_input_ids": np.array([[5, 10**6]], np.int32)}, "draft_input_ids has 1000000"),
        ({"draft_input_ids": np.array([[5]], np.int32), "runtime_top_p": 0.9,
          "draft_logits": np.zeros((1, 2, 7), np.float32)}, "draft_logits is [2, 7]: must be [1,"),
        ({"return_num_input_tokens": True, "runtime_top_p_min": 0.5}, "top_p decay"),
    ],
)  # fmt: skip
def test_an_engine_refuses_in_one_sentence(values: dict, words: str, server: Served) -> None:
    base = {"input_ids": np.array([[5, 6]], np.int32), "input_lengths": 2, "request_output_len": 4}
    with pytest.raises(InferenceServerException, match=re.escape(words)):
        raw.unary(server.url, "tensorrt_llm", {**base, **values})


def test_an_engine_returns_what_it_expects_after_every_token_of_a_prompt(
    server: Served, tiny: Path
) -> None:
    values = {"input_ids": np.array([[5, 6, 7]], np.int32), "input_lengths": 3,
              "request_output_len": 1, "return_context_logits": True}  # fmt: skip
    found = raw.unary(server.url, "tensorrt_llm", values).as_numpy("context_logits")
    np.testing.assert_allclose(found[0], Reference(tiny).logits([5, 6, 7]), atol=1e-3)


def test_an_engine_that_guesses_by_itself_streams_through_the_text_models(serve) -> None:
    with serve(serving={"loop": "bls"}) as server:
        for model in ("ensemble", "tensorrt_llm_bls"):
            values = asked(stream=True, return_perf_metrics=True)
            results = raw.stream(server.url, model, values)
            assert raw.text(results) == expected(server) and len(results) > 1
            assert raw.value(results[-1], "total_draft_tokens") > 0
        answer = expected(server)
        kept = answer[: answer.index(answer[10:14]) + 4]
        got = raw.stream(server.url, "ensemble", asked(stop_words=[answer[10:14]], max_tokens=3000))
        assert raw.text(got) == kept  # and the engine was told to stop:
        server.await_idle()
        assert server.metrics("specpipe_output_tokens_total")["tensorrt_llm"] < 2000


def test_an_engine_that_speculates_in_every_request_is_not_said_to_decode_plainly(serve) -> None:
    """As Medusa, EAGLE and ReDrafter on a GPU: nothing in a request can change what is drafted."""
    with serve(serving={"loop": "bls", "decoupled": False}) as server:
        endpoint = server.client.endpoint
        assert endpoint.tokens is not None and not endpoint.tokens.decoupled
        for model in (*endpoint.texts, endpoint.tokens):
            assert model.speculates and not model.can_decode_plainly
        prompt = server.tokenizer.encode(PROMPT, 100)
        values = {"input_ids": np.array([prompt], np.int32), "input_lengths": len(prompt),
                  "request_output_len": 40, "return_perf_metrics": True,
                  "exclude_input_in_output": True}  # fmt: skip
        (result,) = raw.stream(server.url, "tensorrt_llm", values,
                               parameters={"num_draft_tokens": 0})  # fmt: skip
        assert result.as_numpy("output_ids").reshape(-1).tolist() == server.plain(PROMPT, 40)
        assert raw.value(result, "total_draft_tokens") > 0
        error = raw.stream(server.url, "tensorrt_llm_bls", asked(num_draft_tokens=0))[-1]
        assert error.message().startswith("UNSUPPORTED: num_draft_tokens is 0: the engine drafts")
        with pytest.raises(Unsupported, match="no request can change that"):
            server.client.generate(PROMPT, Options(num_draft_tokens=0))
        refused = cli_generate(server, "--num-draft-tokens", "0", "hi")
        assert refused.exit_code == 3 and "no request can change that" in refused.stderr
        with pytest.raises(InferenceServerException, match="Streaming is only supported"):
            raw.unary(server.url, "tensorrt_llm", {**values, "streaming": True})
        answer = server.client.generate(PROMPT, Options(max_tokens=40))
        assert answer.text == expected(server) and answer.acceptance.draft_tokens > 0


def test_a_lookahead_engine_is_turned_off_by_its_sizes(serve) -> None:
    options = {"method": "lookahead", "window_size": 2, "ngram_size": 3, "verification_set_size": 2,
               "draft_length": "fixed"}  # fmt: skip
    with serve(serving={"loop": "bls"}, speculation=options) as server:
        for model in ("ensemble", "tensorrt_llm_bls"):
            for count in (0, None):
                asked_ = Options(max_tokens=40, num_draft_tokens=count)
                answer = server.client.generate(PROMPT, asked_, model=model)
                assert answer.text == expected(server)
                assert (answer.acceptance.draft_tokens > 0) == (count is None)
        prompt = server.tokenizer.encode(PROMPT, 100)
        plain = collect(server.client.stream_tokens(prompt, Options(num_draft_tokens=0)))
        assert not plain.acceptance.draft_tokens and plain.output_tokens
