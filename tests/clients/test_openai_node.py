"""OpenAI's unchanged package for Node against the served quickstart.

Not part of scripts/test: run scripts/test-clients
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.helpers.clients import Front, clients_folder, needs_clients, run_client

NODE = shutil.which("node")
pytestmark = [
    *needs_clients,
    pytest.mark.skipif(NODE is None, reason="apt-get install nodejs: no node is on PATH"),
]


@pytest.fixture(scope="module")
def told(front: Front, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what the program in JavaScript was answered."""
    program = Path("tests/clients/openai_client.mjs").absolute()
    words = [str(NODE), program, f"{front.url}/v1", front.model]
    folder = {"NODE_CLIENTS": str(clients_folder())}
    return json.loads(run_client(words, tmp_path_factory.mktemp("node"), variables=folder))


def test_answers_are_those_of_the_client_for_python(told: Any, front: Front) -> None:
    with OpenAI(base_url=f"{front.url}/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model=front.model, temperature=0, max_completion_tokens=24,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
        )  # fmt: skip
    assert told["models"] == [front.model]
    assert told["whole"]["text"] == answer.choices[0].message.content
    assert "Paris" in told["whole"]["text"] and told["completion"].strip()


def test_a_stream_is_the_whole_answer_with_its_usage_last(told: Any) -> None:
    streamed = told["streamed"]
    assert streamed["text"] == told["whole"]["text"] and streamed["chunks"] > 3
    assert streamed["usages"][-1] == told["whole"]["usage"]
    assert not any(streamed["usages"][:-1])


def test_tools_and_schemas_are_kept(told: Any) -> None:
    (call,) = told["tools"]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    assert set(json.loads(told["json"])) == {"city"}


def test_refusals_are_errors_of_the_package(told: Any) -> None:
    unknown, two = told["unknown_model"], told["two_answers"]
    assert unknown["api"] and unknown["kind"] == "NotFoundError" and unknown["status"] == 404
    assert two["api"] and two["kind"] == "BadRequestError" and "one answer" in two["message"]


def test_a_stream_that_the_client_leaves_ends(told: Any) -> None:
    assert 3 <= told["aborted"] < 400
