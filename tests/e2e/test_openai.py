"""The OpenAI front before a real server, called by OpenAI's own client and by raw HTTP."""

import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from specpipe.cli import main
from specpipe.core.errors import ConfigError
from specpipe.openai.server import FrontAddress
from specpipe.runtime.tokens import TextStream
from specpipe.serve.client import Client, Options, unshared
from specpipe.validate.reference import Reference
from tests.helpers.fronts import fronting_repository
from tests.helpers.servers import PROMPT, Served, expected
from tests.helpers.waiting import until

pytestmark = pytest.mark.e2e
MODEL = "tensorrt_llm_bls"
GREEDY: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def front(server: Served) -> Iterator[FrontAddress]:
    with fronting_repository(server.url, server.workspace.repository) as address:
        yield address


@pytest.fixture(scope="module")
def client(front: FrontAddress) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=front.url, api_key="any", max_retries=0, timeout=60) as client:
        yield client


def test_the_models_are_those_that_requests_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        client.completions.create(**{**GREEDY, "model": "gpt-4"})


def test_a_completion_is_plain_decoding(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(**GREEDY)
    tokens = server.plain(PROMPT, 40)
    assert answer.choices[0].text == expected(server) and answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.prompt_tokens == len(server.tokenizer.encode(PROMPT, 100))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(tokens)
    found = answer.model_dump()["metrics"]["speculative_decoding"]
    histogram = found["acceptance_histogram"]
    assert 0 < found["num_spec_steps"] == sum(histogram)
    assert found["num_spec_steps"] <= len(tokens) - found["num_accepted_draft_tokens"]
    accepted = sum(count * steps for count, steps in enumerate(histogram))
    assert found["num_accepted_draft_tokens"] == accepted
    assert found["num_draft_tokens"] > 0


def test_a_stream_adds_up_to_the_whole_answer(server: Served, client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(**GREEDY, stream=True,
                                            stream_options={"include_usage": True}))  # fmt: skip
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert "".join(texts) == expected(server) and len(texts) > 3
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == len(server.plain(PROMPT, 40))
    assert "speculative_decoding" in chunks[-1].model_dump()["metrics"]


@pytest.mark.parametrize("more", [{}, {"logprobs": 0}, {"stop": "zz"}])
def test_the_usage_of_every_chunk_is_exact(
    server: Served, client: openai.OpenAI, more: dict[str, Any]
) -> None:
    """The tokens of every chunk have the text so far."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        client.completions.create(**{**GREEDY, **more}, stream=True, stream_options=options)
    )
    tokens, text = server.plain(PROMPT, 40), ""
    prompt = len(server.tokenizer.encode(PROMPT, 100))
    for chunk in chunks:
        assert chunk.usage is not None and chunk.usage.prompt_tokens == prompt
        count = chunk.usage.completion_tokens
        assert chunk.usage.total_tokens == prompt + count
        text += "".join(choice.text for choice in chunk.choices)
        certain = TextStream(server.tokenizer).push(tokens[:count])  # one character may be held
        held = len(certain) - len(text)
        assert text == expected(server) or (certain.startswith(text) and held <= 1)
    assert text == expected(server) and count == len(tokens)
    assert len({chunk.usage.completion_tokens for chunk in chunks if chunk.usage}) > 3


@pytest.mark.parametrize("plain", [True, False])
def test_our_client_reads_the_front_as_it_reads_grpc(
    server: Served, front: FrontAddress, plain: bool
) -> None:
    options = Options(max_tokens=40, num_draft_tokens=0 if plain else None)
    theirs = server.client.generate(PROMPT, options)
    with Client(front.url) as ours:
        whole = ours.generate(PROMPT, unshared(options, ours.endpoint.text))
        streamed = ours.collect(ours.stream(PROMPT, options))
        for answer in (whole, streamed):
            assert (answer.text, answer.output_tokens) == (theirs.text, theirs.output_tokens)
            assert answer.acceptance == theirs.acceptance
        assert (whole.acceptance.draft_tokens == 0) == plain
        assert 0 < streamed.first_s < streamed.total_s
        sampled = Options(max_tokens=20, temperature=0.9, top_p=0.9, seed=3, stop_words=("zz",))
        assert ours.generate(PROMPT, sampled).text == server.client.generate(PROMPT, sampled).text
        with pytest.raises(ConfigError, match="max_tokens"):
            ours.generate(PROMPT, Options(max_tokens=0))


def test_generate_takes_the_address_of_the_front(server: Served, front: FrontAddress) -> None:
    words = ("--json", "--raw", "--max-tokens", "40", PROMPT)
    place = ["--config", server.config.path, "--workspace", str(server.workspace.root)]
    done = CliRunner().invoke(main, ["generate", "--url", front.url, *place, *words])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[0])
    assert answer["text"] == expected(server) and answer["total_draft_tokens"] > 0


def test_validate_passes_through_the_front(server: Served, front: FrontAddress) -> None:
    """Both arms are measured, without the metrics that need logits and tokens."""
    path = Path(server.config.path).with_name("judged.yaml")
    prompts = path.with_name("prompts.jsonl")
    prompts.write_text("\n".join(json.dumps({"prompt": text}) for text in (PROMPT, "one two one")))
    judged = {"prompts": str(prompts), "max_tokens": 24, "gates": {"exact_match": 1}}
    values = json.loads(Path(server.config.path).read_text())
    path.write_text(json.dumps({**values, "validate": judged}))
    place = ("--config", str(path), "--workspace", str(server.workspace.root))
    done = CliRunner().invoke(main, ["validate", *place, "--url", front.url])
    assert done.exit_code == 0, done.output
    found = json.loads((server.workspace.reports / "report.json").read_text())
    assert {trial["arm"] for trial in found["trials"]} == {"reference", "plain", "speculative"}
    drafted = {trial["arm"]: trial["draft_tokens"] for trial in found["trials"]}
    assert drafted["speculative"] > 0 and drafted["plain"] == 0
    assert found["metrics"]["acceptance_length"]["arms"]["speculative"]["median"] >= 1
    assert "an OpenAI API does not" in found["left_out"]["perplexity"]


def test_prompts_of_one_request_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = ["Once upon", "The engine", PROMPT]
    alone = [client.completions.create(**{**GREEDY, "prompt": p}).choices[0].text for p in prompts]
    together = client.completions.create(**{**GREEDY, "prompt": prompts})
    assert [choice.text for choice in together.choices] == alone
    streamed = ["", "", ""]
    for chunk in client.completions.create(**{**GREEDY, "prompt": prompts, "stream": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == alone


def test_a_seed_decides_and_is_that_of_every_front(server: Served, client: openai.OpenAI) -> None:
    sampled = {**GREEDY, "temperature": 1.2, "top_p": 0.9}
    first, again, other = (
        client.completions.create(**sampled, seed=seed).choices[0].text for seed in (7, 7, 8)
    )
    options = Options(max_tokens=40, temperature=1.2, top_p=0.9, seed=7)
    assert first == again == server.client.generate(PROMPT, options).text != other
    unseeded = {client.completions.create(**sampled).choices[0].text for _ in range(2)}
    assert len(unseeded) == 2


def test_a_stop_text_ends_the_answer(server: Served, client: openai.OpenAI) -> None:
    whole = expected(server)
    stop = re.findall(r"[ -~]{2}", whole[3:])[0]
    answer = client.completions.create(**GREEDY, stop=stop)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert client.completions.create(**GREEDY, echo=True, stop=[stop]).choices[0].text == (
        PROMPT + whole[: whole.index(stop)]
    )


def test_drafts_can_be_turned_off_by_a_request(server: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(**GREEDY, extra_body={"num_draft_tokens": 0})
    assert answer.choices[0].text == expected(server)
    assert answer.model_dump()["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"temperature": "hot"}, "must be a number"),
        ({"prompt": "word " * 200}, "max_input_len"),
        ({"max_tokens": 100_000}, "max_seq_len"),
        ({"n": 2}, "one answer"),
        ({"unheard_of": 1}, "unheard_of is not a field"),
    ],
)
def test_a_refusal_is_a_bad_request_with_a_sentence(
    client: openai.OpenAI, more: dict[str, Any], words: str
) -> None:
    for stream in (False, True):
        body = {**GREEDY, **more, "stream": stream}
        with pytest.raises(openai.BadRequestError, match=words) as raised:
            client.post("/completions", body=body, cast_to=object)
        assert raised.value.type == "invalid_request_error"


def test_the_right_key_opens_and_everything_else_does_not(server: Served) -> None:
    with fronting_repository(server.url, server.workspace.repository, key="sk-secret") as address:
        for key in ("sk-other", "sk-secre", ""):
            request = urllib.request.Request(
                f"{address.url}/models", headers={"Authorization": f"Bearer {key}"}
            )
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(request)
            assert raised.value.code == 401
            assert json.load(raised.value)["error"]["code"] == "invalid_api_key"
        with openai.OpenAI(base_url=address.url, api_key="sk-secret") as client:
            assert client.models.list().data


def post(address: FrontAddress, *chunks: bytes, length: int | None = None) -> bytes:
    """Send a body in chunks, or with a length; return the first line of the answer."""
    how = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{how}\r\n\r\n".encode()
    with socket.create_connection((address.host, address.port), timeout=30) as sock:
        sock.sendall(head)
        for chunk in chunks:
            sock.sendall(chunk if length is not None else b"%x\r\n%s\r\n" % (len(chunk), chunk))
        return sock.recv(4096).split(b"\r\n")[0]


def test_a_body_is_bounded_however_it_is_sent(server: Served) -> None:
    with fronting_repository(
        server.url, server.workspace.repository, most_body_bytes=1000
    ) as address:
        assert b"413" in post(address, length=1001)
        assert b"413" in post(address, b"x" * 600, b"x" * 600)
        assert b"400" in post(address, b"x" * 900, b"")
        assert b"400" in post(address, b"[1]", length=3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(
    server: Served, front: FrontAddress, stream: bool
) -> None:
    body = json.dumps({**GREEDY, "max_tokens": 3900, "stream": stream, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((front.host, front.port), timeout=30) as sock:
        sock.sendall(head.encode() + body)
        server.await_in_flight(MODEL, 1)
        if stream:
            sock.recv(100)
    server.await_in_flight(MODEL, 0)
    server.await_idle()


def test_a_salt_travels_with_a_request(server: Served, client: openai.OpenAI) -> None:
    body = {"cache_salt": "tenant", "num_draft_tokens": 2}
    answer = client.completions.create(**GREEDY, extra_body=body)
    assert answer.choices[0].text == expected(server)


def test_idle_connections_cost_nothing(front: FrontAddress, client: openai.OpenAI) -> None:
    before = threading.active_count()
    idle = [socket.create_connection((front.host, front.port)) for _ in range(200)]
    try:
        assert client.completions.create(**GREEDY).choices[0].text
        assert threading.active_count() <= before + 1
    finally:
        for sock in idle:
            sock.close()


def test_health_follows_the_server(front: FrontAddress) -> None:
    url = front.url.removesuffix("/v1")
    assert urllib.request.urlopen(f"{url}/health").status == 200
    with urllib.request.urlopen(f"{url}/version") as answer:
        assert json.load(answer)["version"].startswith("specpipe ")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{url}/v1/nothing")


def test_metrics_are_those_of_the_front_and_of_its_server(server: Served) -> None:
    long: dict[str, Any] = {**GREEDY, "max_tokens": 3000, "extra_body": {"ignore_eos": True}}
    metrics = f"http://{server.endpoint.address.metrics}/metrics"
    with fronting_repository(
        server.url, server.workspace.repository, metrics_url=metrics
    ) as address:
        with openai.OpenAI(base_url=address.url, api_key="x") as client:
            client.completions.create(**GREEDY)
            with client.completions.create(**long, stream=True) as begun:
                next(iter(begun))

        def text() -> str:
            url = f"{address.url.removesuffix('/v1')}/metrics"
            return urllib.request.urlopen(url).read().decode()

        left = 'specpipe_openai_disconnects_total{route="/v1/completions"} 1\n'
        until(lambda: left in text())
        assert 'requests_total{route="/v1/completions",status="200"} 2\n' in text()
        assert 'requests_open{route="/v1/completions"} 0\n' in text()
        assert "specpipe_openai_server_metrics_up 1\n" in text()
        assert "specpipe_requests_in_flight{" in text() and "nv_inference_count{" in text()


def test_prompts_of_token_ids_are_answered_like_their_text(
    server: Served, client: openai.OpenAI
) -> None:
    ids = server.tokenizer.encode(PROMPT, 100)
    for prompt in (ids, [ids, ids[:5]]):
        answer = client.completions.create(**{**GREEDY, "prompt": prompt})
        assert answer.choices[0].text == expected(server)
        assert answer.choices[0].finish_reason == "length" and answer.usage is not None
        sent = len(ids) if prompt == ids else len(ids) + 5
        assert answer.usage.prompt_tokens == sent
        assert answer.usage.completion_tokens == 40 * len(answer.choices)
    whole = expected(server)
    stop = re.findall(r"[ -~]{2}", whole[3:])[0]
    answer = client.completions.create(**{**GREEDY, "prompt": ids, "stop": stop})
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi <|im_end|>"}]},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


def test_a_chat_is_the_models_answer_to_its_own_template(
    server: Served, client: openai.OpenAI, tiny: Path
) -> None:
    judge = AutoTokenizer.from_pretrained(tiny)
    text = judge.apply_chat_template(MESSAGES[:1] + MESSAGES[2:], tokenize=False,
                                     add_generation_prompt=True)  # fmt: skip
    body = {"model": "tiny", "messages": MESSAGES[:1] + MESSAGES[2:], "temperature": 0}
    answer = client.chat.completions.create(**body, max_completion_tokens=20)
    tokens = server.plain(text, 20)
    assert answer.choices[0].message.content == server.plain_text(text, 20)
    assert answer.choices[0].finish_reason == "length" and answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.prompt_tokens == len(judge(text, add_special_tokens=False).input_ids)
    chunks = list(client.chat.completions.create(**body, max_tokens=20, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert streamed == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_chat_without_a_number_of_tokens_may_fill_the_engine(
    server: Served, client: openai.OpenAI
) -> None:
    chunks = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert next(iter(chunks)).choices
    chunks.close()
    server.await_in_flight(MODEL, 0)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": 5}], "content must be a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' is not supported"),
        ([{"content": "x"}], "'role'"),
        ([], "at least one message"),
        (None, "'messages'"),
    ],
)
def test_messages_that_no_template_takes_are_a_bad_request(
    client: openai.OpenAI, messages: object, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(model="tiny", messages=messages)  # type: ignore[arg-type]


def exact_log_probs(tiny: Path, ids: list[int]) -> np.ndarray:
    """Return transformers' log probabilities [n, V] after every token."""
    logits = Reference(tiny).logits(ids).astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (logits.max(-1, keepdims=True))
    )


def test_a_prompt_is_scored_in_the_shape_of_lm_evaluation_harness(
    server: Served, client: openai.OpenAI, tiny: Path
) -> None:
    ids = [server.tokenizer.encode(text, 100) for text in (PROMPT, PROMPT * 2)]
    answer = client.completions.create(
        model="tiny", prompt=ids, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    for prompt, choice in zip(ids, answer.choices, strict=True):
        found, exact = choice.logprobs, exact_log_probs(tiny, prompt)
        assert found is not None and found.token_logprobs and found.top_logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(prompt) + 1
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        own = [exact[at, token] for at, token in enumerate(prompt[1:])] + [exact[-1].max()]
        np.testing.assert_allclose(found.token_logprobs[1:], own, atol=2e-4)
        for at, token in enumerate(prompt[1:]):
            values = found.top_logprobs[at + 1].values()
            assert max(values) == pytest.approx(exact[at].max(), abs=2e-4)
            greedy = exact[at].argmax() == token
            assert (found.token_logprobs[at + 1] == max(values)) == greedy
        assert choice.text.startswith(PROMPT)


@pytest.mark.parametrize("drafts", [0, 2])
def test_log_probabilities_come_with_every_token_of_a_stream(
    server: Served, client: openai.OpenAI, tiny: Path, drafts: int
) -> None:
    body: Any = {**GREEDY, "logprobs": 0, "max_tokens": 12}
    body["extra_body"] = {"num_draft_tokens": drafts}
    whole = client.completions.create(**body).choices[0].logprobs
    parts = [c.choices[0].logprobs for c in client.completions.create(**body, stream=True)]
    streamed = [value for part in parts if part for value in part.token_logprobs or ()]
    prompt, tokens = server.tokenizer.encode(PROMPT, 100), server.plain(PROMPT, 12)
    exact = exact_log_probs(tiny, [*prompt, *tokens])
    own = [exact[len(prompt) - 1 + at, token] for at, token in enumerate(tokens)]
    assert whole is not None
    if drafts:  # the two requests may draft differently, which changes the last bits
        np.testing.assert_allclose(whole.token_logprobs, streamed, atol=1e-5)
    else:
        assert whole.token_logprobs == streamed
    np.testing.assert_allclose(streamed, own, atol=2e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_has_log_probabilities_of_its_tokens_and_the_likeliest(
    server: Served, client: openai.OpenAI, tiny: Path, stream: bool
) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    body: Any = {"model": "tiny", "messages": messages, "max_tokens": 10, "seed": 3}
    answer = client.chat.completions.create(
        **body, logprobs=True, top_logprobs=3, stream=stream
    )  # sampled: the actual token is often not the likeliest
    choices = [c.choices[0] for c in answer] if stream else [answer.choices[0]]
    found = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    prompt = AutoTokenizer.from_pretrained(tiny).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    exact, ids = exact_log_probs(tiny, prompt), list(prompt)
    for entry in found:
        order = np.argsort(-exact[-1])[:3]
        tops = [top.logprob for top in entry.top_logprobs]
        np.testing.assert_allclose(tops, exact[-1][order], atol=2e-4)
        assert [top.token for top in entry.top_logprobs] == [
            server.tokenizer.decode([int(token)], special=True) for token in order
        ]
        near = np.flatnonzero(np.abs(exact[-1] - entry.logprob) < 2e-4).tolist()
        ids.append(
            next(t for t in near if server.tokenizer.decode([t], special=True) == entry.token)
        )
        exact = exact_log_probs(tiny, ids)
    plain = client.chat.completions.create(**body)
    assert len(found) == plain.usage.completion_tokens
    text = "".join((c.delta if stream else c.message).content or "" for c in choices)
    assert text == plain.choices[0].message.content


def test_a_front_without_the_tokenizer_refuses_token_ids(server: Served) -> None:
    with fronting_repository(server.url, server.workspace.repository, tokenizer=None) as address:
        client = openai.OpenAI(base_url=address.url, api_key="x")
        with pytest.raises(openai.BadRequestError, match="does not have the tokenizer"):
            client.completions.create(**{**GREEDY, "prompt": [5, 6]})
