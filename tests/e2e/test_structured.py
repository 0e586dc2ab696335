"""Structured output through a real server: every front, with the official OpenAI client."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from specpipe.core.conversation import load_conversation
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.guide import Guide
from specpipe.serve.client import Options
from tests.helpers.fronts import fronting_repository
from tests.helpers.servers import PROMPT, Serve, Served, cli_generate

pytestmark = pytest.mark.e2e
CODE = r"[a-f]{3}-\d{2,4}(; [a-f]{2}){1,5}"


class Kind(str, Enum):
    CAT = "cat"
    DOG = "dog"


class Pet(BaseModel):
    kind: Kind
    ages: list[bool]
    lives: int | None


MESSAGES: Any = [{"role": "user", "content": "Describe a pet."}]
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
        "additionalProperties": False}}}
    for name in ("lamp", "radio")
]  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with fronting_repository(server.url, server.workspace.repository) as front:
        with openai.OpenAI(base_url=front.url, api_key="any", max_retries=0, timeout=60) as made:
            yield made


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "seed": 4, **more}
    )


@pytest.mark.parametrize("options", [{}, {"top_p": 1.0, "temperature": 0.9, "seed": 7}])
def test_an_answer_matches_and_equals_that_without_speculation(
    server: Served, options: dict[str, Any]
) -> None:
    guided = Options(max_tokens=60, guide=Guide("regex", CODE), **options)
    drafted = server.client.generate(PROMPT, guided)
    plain = server.client.generate(
        PROMPT,
        Options(**{**vars(guided), "num_draft_tokens": 0}),  # type: ignore[arg-type]
    )
    assert re.fullmatch(CODE, drafted.text) and drafted.text == plain.text
    assert "".join(piece.text for piece in server.client.stream(PROMPT, guided)) == plain.text


def test_a_guide_goes_through_a_text_model_that_calls_an_engine(
    serve: Serve, server: Served
) -> None:
    """As on a GPU without drafts, with the CPU engine in the place of TensorRT-LLM's."""
    guided = Options(max_tokens=60, num_draft_tokens=0, guide=Guide("regex", CODE))
    with serve(serving={"loop": "bls"}, speculation={"method": "none"}) as called:
        answer = called.client.generate(PROMPT, guided)
        assert answer.text == server.client.generate(PROMPT, guided).text
        assert re.fullmatch(CODE, answer.text)
        with pytest.raises(Unsupported, match="min_tokens with a guide"):
            called.client.generate(PROMPT, replace(guided, min_tokens=2))
        with pytest.raises(Unsupported, match="end_id with a guide"):
            called.client.generate(PROMPT, replace(guided, end_id=5))
        with pytest.raises(ConfigError, match="expression cannot be used: error: unclosed group"):
            called.client.generate(PROMPT, Options(guide=Guide("regex", "a(")))
        with fronting_repository(called.url, called.workspace.repository) as front:
            with openai.OpenAI(base_url=front.url, api_key="any", max_retries=0) as made:
                pet = made.chat.completions.parse(
                    model="tiny", messages=MESSAGES, response_format=Pet, max_tokens=300, seed=1
                )
                assert isinstance(pet.choices[0].message.parsed, Pet)


def test_an_unusable_guide_is_one_sentence_and_the_server_lives(server: Served) -> None:
    with pytest.raises(ConfigError, match="expression cannot be used: error: unclosed group"):
        server.client.generate(PROMPT, Options(guide=Guide("regex", "a(")))
    assert server.client.generate(PROMPT, Options(max_tokens=3)).output_tokens


def test_the_client_parses_a_model_of_pydantic(client: openai.OpenAI) -> None:
    for seed in (1, 2):
        answer = client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Pet, max_tokens=300, seed=seed
        )
        assert isinstance(answer.choices[0].message.parsed, Pet)
        assert answer.choices[0].finish_reason == "stop"


def test_an_object_in_a_stream_is_json(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    kind = {"type": "json_schema", "json_schema": {"name": "A", "schema": schema}}
    chunks = list(chat(client, response_format=kind, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert json.loads(text)["a"] in (1, 2)
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_an_answer_that_is_too_long_is_told_to_be_cut(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Pet, max_tokens=3
        )


def test_vllms_key_takes_expressions_and_choices(client: openai.OpenAI) -> None:
    for asked, pattern in (({"regex": r"\d{3}"}, r"\d{3}"), ({"choice": ["a+", "b"]}, r"a\+|b")):
        answer = chat(client, extra_body={"structured_outputs": asked})
        assert re.fullmatch(pattern, answer.choices[0].message.content)
    answer = client.completions.create(
        model="tiny", prompt="x", max_tokens=9, logprobs=0,
        extra_body={"structured_outputs": {"regex": "[xy]{4}"}},
    )  # fmt: skip
    assert re.fullmatch("[xy]{4}", answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "radio"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_arrives_as_a_call(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    more = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    if stream:
        deltas = [chunk.choices[0] for chunk in chat(client, stream=True, **more)]
        (call,) = [c for d in deltas for c in d.delta.tool_calls or []]
        reason = deltas[-1].finish_reason
    else:
        (found,) = chat(client, **more).choices
        (call,) = found.message.tool_calls
        reason = found.finish_reason
    assert call.function.name in ("lamp", "radio")[isinstance(choice, dict) :]
    assert isinstance(json.loads(call.function.arguments)["on"], bool)
    assert reason == "tool_calls"


def test_what_cannot_be_used_is_a_bad_request(client: openai.OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="JSON schema cannot be used: Unimplemented"):
        chat(client, response_format=schema)


def test_the_command_line_takes_files_and_an_expression(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"enum": ["yes", "no"]}')
    for words, texts in (
        (["--json-schema", str(file)], {'"yes"', '"no"'}),
        (["--regex", "yes|no"], {"yes", "no"}),
    ):
        result = cli_generate(server, "Well?", "--json", *words)
        assert json.loads(result.stdout)["text"] in texts, result.output
    both = cli_generate(server, "Well?", "--regex", "a", "--json-schema", str(file))
    assert both.exit_code == 2 and "exclude each other" in both.output


def test_a_chat_continues_the_last_message(client: openai.OpenAI, server: Served) -> None:
    begun: Any = [*MESSAGES, {"role": "assistant", "content": "The quick"}]
    ask: Any = {"temperature": 0, "max_tokens": 12, "seed": None}
    more = {"continue_final_message": True, "add_generation_prompt": False}
    answer = chat(client, messages=begun, extra_body=more, **ask)
    prompt = server.tokenizer.chat.text(
        load_conversation(json.dumps({"messages": begun, "continue_final_message": True}))
    )
    assert prompt.endswith("The quick")
    assert answer.choices[0].message.content == server.plain_text(prompt, 12)
