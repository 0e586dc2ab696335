"""The client of OpenAI's API against strict stand-ins for the servers of several engines."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint, Model, Serving, Tensors
from specpipe.core.errors import ConfigError, SpecpipeError, StageFailed, Unavailable, Unsupported
from specpipe.core.guide import Guide
from specpipe.engine.llmapi.backend import LlmApiBackend
from specpipe.serve.client import Acceptance, Client, ClientTls, Options, collect, unshared
from specpipe.serve.http.requests import text_body
from tests.helpers.openai_servers import (
    FIRST_TOKEN,
    PROMPT_TOKENS,
    STOP,
    WORDS,
    Standin,
    openai_server,
)

KINDS = ("trtllm", "trtllm-old", "vllm", "dynamo", "plain")
SAMPLED = Options(max_tokens=5, temperature=0.5, top_p=0.9, seed=7, presence_penalty=0.1)
ANSWER = "".join(WORDS[:5])


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Standin]]:
    with (
        openai_server("trtllm") as trtllm,
        openai_server("trtllm-old") as old,
        openai_server("vllm") as vllm,
        openai_server("dynamo") as dynamo,
        openai_server("plain") as plain,
    ):
        found = (trtllm, old, vllm, dynamo, plain)
        yield dict(zip(KINDS, found, strict=True))


@pytest.fixture
def trtllm(servers: dict[str, Standin]) -> Standin:
    return servers["trtllm"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("options", [Options(max_tokens=5), SAMPLED])
def test_every_server_answers_whole_and_streamed(
    servers: dict[str, Standin], kind: str, chat: bool, options: Options
) -> None:
    with Client(servers[kind].url) as client:
        whole = client.generate("hi", options, chat=chat)
        pieces = list(client.stream("hi", options, chat=chat))
    assert whole.text == "".join(piece.text for piece in pieces) == ANSWER
    assert [piece.final for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len([piece for piece in pieces if piece.text]) == 3  # steps of the stand-in
    assert pieces[-1].finish_reason == "length" and pieces[-1].prompt_tokens == PROMPT_TOKENS
    assert whole.output_tokens == pieces[-1].output_tokens == 5
    assert 0 < pieces[0].at_s <= pieces[-1].at_s == collect(iter(pieces)).total_s


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("trtllm", Acceptance(8, 4)),
        ("vllm", Acceptance(8, 4, steps=(1, 2, 1))),
        ("trtllm-old", Acceptance(reported=False)),
        ("dynamo", Acceptance(reported=False)),
        ("plain", Acceptance(reported=False)),
    ],
)
def test_draft_tokens_are_read_where_the_server_reports_them(
    servers: dict[str, Standin], kind: str, found: Acceptance
) -> None:
    with Client(servers[kind].url) as client:
        assert client.generate("hi", Options(max_tokens=5)).acceptance == found
        assert collect(client.stream("hi", Options(max_tokens=5))).acceptance == found
        assert client.endpoint.text.reports_acceptance == (kind in ("trtllm", "trtllm-old", "vllm"))


@pytest.mark.parametrize("kind", ["trtllm", "vllm"])
@pytest.mark.parametrize(("most", "steps"), [(5, (1, 2, 2)), (20, (1, 2, 2, 2, 2))])
def test_tokens_arrive_step_by_step_with_the_stop_token(
    servers: dict[str, Standin], kind: str, most: int, steps: tuple[int, ...]
) -> None:
    options = Options(max_tokens=most, end_ids=(STOP, 7))
    with Client(servers[kind].url) as client:
        answer = client.collect(client.stream_tokens([1, 2, 3], options))
    assert answer.tokens == tuple(range(FIRST_TOKEN, min(FIRST_TOKEN + most, STOP + 1)))
    assert tuple(n for n in answer.step_tokens if n)[: len(steps) - 1] == steps[:-1]
    asked = servers[kind].bodies[-1]
    assert asked["prompt"] == [1, 2, 3] and asked["stop_token_ids"] == [STOP, 7]


@pytest.mark.parametrize("kind", ["dynamo", "plain"])
def test_a_server_that_shows_no_tokens_has_no_model_of_tokens(
    servers: dict[str, Standin], kind: str
) -> None:
    with Client(servers[kind].url) as client, pytest.raises(Unsupported, match="takes tokens"):
        client.stream_tokens([1], Options())


def test_a_request_is_greedy_unless_it_samples(trtllm: Standin) -> None:
    with Client(trtllm.url) as client:
        for options, sampling in (
            (Options(), {"temperature": 0}),
            (Options(temperature=0.7), {"temperature": 0}),  # as in Triton's models
            (Options(top_k=1), {"temperature": 0}),
            (Options(top_k=5), {"temperature": 1.0, "top_k": 5}),
            (Options(temperature=0.7, top_p=1.0), {"temperature": 0.7, "top_p": 1.0}),
        ):
            client.generate("hi", options)
            sent = trtllm.bodies[-1]
            assert {k: v for k, v in sent.items() if k in ("temperature", "top_p", "top_k")} == (
                sampling
            )


def test_options_are_fields_of_the_servers_own_names(trtllm: Standin) -> None:
    with Client(trtllm.url) as client:
        options = Options(end_id=-1, stop_words=("a", "b"), min_tokens=2, repetition_penalty=1.5)
        client.generate("hi", options)
    sent = trtllm.bodies[-1]
    assert (sent["ignore_eos"], sent["stop"], sent["min_tokens"]) == (True, ["a", "b"], 2)
    assert sent["repetition_penalty"] == 1.5 and "stream" not in sent


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("trtllm", Options(num_draft_tokens=0), "num_draft_tokens"),
        ("trtllm", Options(bad_words=("x",)), "bad_words"),
        ("trtllm", Options(cache_salt="x"), "cache_salt"),
        ("trtllm", Options(end_id=3), "end_id"),
        ("trtllm", Options(log_probs=True), "log_probs"),
        ("trtllm", Options(fit_max_tokens=True), "fit_max_tokens"),
        ("dynamo", Options(end_ids=(3,)), "end_ids"),
        ("plain", Options(top_k=4), "top_k"),
        ("plain", Options(end_id=-1), "end_id"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(
    servers: dict[str, Standin], kind: str, options: Options, word: str
) -> None:
    before = len(servers[kind].bodies)
    with Client(servers[kind].url) as client:
        with pytest.raises(Unsupported, match=word):
            client.generate("hi", options)
        with pytest.raises(Unsupported, match="logits|takes tokens"):
            next(iter(client.context_logits([1])))
    assert len(servers[kind].bodies) == before


def test_the_stand_ins_refuse_fields_that_their_kind_does_not_have(trtllm: Standin) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 1, "return_token_ids": True}
    connection = socket.create_connection(("127.0.0.1", int(trtllm.url.rpartition(":")[2])))
    with connection:
        text = json.dumps(body)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n"
        connection.sendall((head + text).encode())
        assert b" 400 " in connection.recv(100)


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("too long", ConfigError, "the prompt is too long"),
        ("busy", Unavailable, "the queue is full"),
        ("fail", StageFailed, "KeyError"),
        ("locked", ConfigError, r"wrong key(.|\n)*--api-key-file"),
        ("media", Unsupported, "no images"),
    ],
)
def test_refusals_and_failures_become_ours(
    trtllm: Standin, prompt: str, kind: type[SpecpipeError], words: str
) -> None:
    with Client(trtllm.url) as client:
        for answer in (client.generate, lambda text: list(client.stream(text))):
            with pytest.raises(SpecpipeError, match=words) as raised:
                answer(prompt)
            assert type(raised.value) is kind


def test_a_stream_that_breaks_off_is_no_answer(trtllm: Standin) -> None:
    with Client(trtllm.url) as client:
        with pytest.raises(Unavailable, match="lost in the middle"):
            list(client.stream("cut"))
        with pytest.raises(StageFailed, match="middle of the answer: the engine died"):
            list(client.stream("broken"))
        assert client.generate("hi", Options(max_tokens=5)).text == ANSWER


def test_leaving_a_stream_cancels_the_request(trtllm: Standin) -> None:
    with Client(trtllm.url) as client:
        for piece in client.stream("endless"):
            if piece.text:
                break
        assert trtllm.cancelled.wait(30)


def test_a_connection_is_used_again_after_whole_answers_and_streams() -> None:
    with openai_server("trtllm") as server, Client(server.url) as client:
        for _ in range(3):
            client.generate("hi")
            list(client.stream("hi"))
        assert server.connections == 2  # one for the list of models


def test_the_key_is_shown_in_every_request() -> None:
    with openai_server("vllm") as server:
        with Client(server.url, key="secret") as client:
            client.generate("hi")
        with Client(server.url) as client:
            client.generate("hi")
        assert server.keys == ["Bearer secret", None]


def test_requests_of_several_threads_do_not_mix(trtllm: Standin) -> None:
    found: list[str] = []
    with Client(trtllm.url) as client:
        threads = [
            threading.Thread(
                target=lambda n=n: found.append(client.generate("hi", Options(n)).text)
            )
            for n in range(1, 9)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found, key=len) == ["".join(WORDS[:n]) for n in range(1, 9)]


def test_the_description_of_the_run_tells_whether_it_speculates(trtllm: Standin) -> None:
    with Client(trtllm.url, run_of("none")) as client:
        assert client.endpoint.text.can_decode_plainly
        client.generate("hi", Options(num_draft_tokens=0))
    with Client(trtllm.url, run_of("eagle3")) as client:
        assert not client.endpoint.text.can_decode_plainly


def run_of(method: str) -> Endpoint:
    return LlmApiBackend().endpoint(Serving(method, 3))


def test_only_models_of_the_server_are_called(trtllm: Standin) -> None:
    with Client(trtllm.url) as client:
        assert client.generate("hi", model="tiny").text
        with pytest.raises(ConfigError, match="known: tiny"):
            client.generate("hi", model="gpt4")


def test_cache_salts_are_for_servers_that_take_them(servers: dict[str, Standin]) -> None:
    for kind, salted in (("vllm", True), ("trtllm", False)):
        with Client(servers[kind].url) as client:
            client.generate("hi", unshared(Options(), client.endpoint.text))
        assert ("cache_salt" in servers[kind].bodies[-1]) == salted


def test_a_conversation_is_sent_as_messages(trtllm: Standin) -> None:
    tools = ({"type": "function", "function": {"name": "f"}},)
    asked = Conversation(({"role": "user", "content": "hi"},), tools)
    with Client(trtllm.url) as client:
        client.generate(asked)
        sent = trtllm.bodies[-1]
        assert sent["messages"] == list(asked.messages) and sent["tools"] == list(tools)
        assert "add_generation_prompt" not in sent
        with pytest.raises(Unsupported, match="names of templates"):
            client.generate(Conversation(asked.messages, template="rag"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1", "no answer from http://127.0.0.1:1: "),
        ("http://no-such-host.invalid:1", "no answer"),
    ],
)
def test_an_absent_server_is_unavailable(url: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        Client(url, timeout_s=10).generate("hi")


def test_a_server_that_is_no_openai_api_is_a_sentence() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def speak() -> None:
            with listener.accept()[0] as peer:
                peer.recv(100)
                peer.sendall(b"PRI * HTTP/2.0\r\n\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(Unavailable, match="does not speak HTTP"):
            Client(url, timeout_s=10).generate("hi")
        thread.join()


@pytest.mark.parametrize(
    "url", ["ftp://x:1", "http://", "http://x:99999", "http://u@x", "http://x/?a"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of an OpenAI API"):
        Client(url)


def test_only_servers_of_other_machines_are_called_through_a_proxy(
    trtllm: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(trtllm.url) as client:
        assert client.generate("hi", Options(max_tokens=5)).text == ANSWER
    monkeypatch.setenv("http_proxy", trtllm.url)
    with Client("http://model.example:8080") as client:
        assert client.generate("hi", Options(max_tokens=5)).text == ANSWER
    assert trtllm.paths[-2:] == ["/v1/completions", "http://model.example:8080/v1/completions"]


def test_certificates_and_keys_need_their_protocol(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="https"):
        Client("http://127.0.0.1:1", tls=ClientTls(tmp_path / "ca"))
    with pytest.raises(ConfigError, match="http://"):
        Client("127.0.0.1:1", key="secret")
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        Client("https://127.0.0.1:1", tls=ClientTls(tmp_path / "ca"))


def test_the_models_of_every_server_are_called_by_the_names_it_lists(trtllm: Standin) -> None:
    (model,) = Client(trtllm.url).endpoint.texts
    assert isinstance(model, Model) and model.name == "tiny"


def test_a_guide_is_the_schema_of_a_response_format() -> None:
    model = Model("m", Tensors("prompt", "max_tokens", "stream", "", ""))
    for guide, schema in (
        (Guide("json"), {}),
        (Guide("json_schema", '{"enum": [1]}'), {"enum": [1]}),
    ):
        body = text_body(model, "x", Options(guide=guide), stream=False).body
        assert body["response_format"]["json_schema"]["schema"] == schema
    with pytest.raises(Unsupported, match="regex: over HTTP this client sends JSON schemas only"):
        text_body(model, "x", Options(guide=Guide("regex", "a")), stream=False)
    with pytest.raises(ConfigError, match="JSON schema cannot be used"):
        text_body(model, "x", Options(guide=Guide("json_schema", "{")), stream=False)
