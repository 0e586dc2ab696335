"""A repository of `backend: vllm` for Triton in a real tritonserver, with a mock of the backend.

The mock has the tensors, refusals and streams of the backend's model; its decoding is made up.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import Unsupported
from specpipe.repository.render import parse, to_text
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.description import fetch_endpoint, upstreams
from specpipe.serve.tritonserver import start_server
from tests.helpers.built_runs import built_run
from tests.helpers.fronts import fronting_repository

pytestmark = pytest.mark.e2e
STAND_IN = Path(__file__).parents[1] / "standins/vllm_backend/model.py"
FLAGS = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
INPUTS = {"text_input": "STRING", "stream": "BOOL", "sampling_parameters": "STRING",
          "exclude_input_in_output": "BOOL", **dict.fromkeys(FLAGS, "BOOL")}  # fmt: skip
OUTPUTS = {"text_output": ("STRING", -1), "finish_reason": ("STRING", -1),
           "num_input_tokens": ("UINT32", 1), "num_output_tokens": ("UINT32", -1)}  # fmt: skip
Started = tuple[Path, Workspace, str]  # config, workspace, gRPC url


def complete(file: Path) -> None:
    """Name the mock's backend, and the tensors that upstream's adds to a config itself."""
    config = parse(file.read_text())
    config.backend = "python"
    for name, kind in INPUTS.items():
        config.input.add(
            name=name, data_type=f"TYPE_{kind}", dims=[1], optional=name != "text_input"
        )
    for name, (kind, size) in OUTPUTS.items():
        config.output.add(name=name, data_type=f"TYPE_{kind}", dims=[size])
    file.write_text(to_text(config))


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    root = tmp_path_factory.mktemp("vllm")
    values = {
        "name": "vllm", "target": {"model": str(tiny)},
        "engine": {"backend": "vllm", "dtype": "float32", "max_input_len": 100, "max_seq_len": 200},
        "speculation": {"method": "prompt_lookup", "num_draft_tokens": 3},
        "serving": {"front": "triton"},
    }  # fmt: skip
    path, workspace = built_run(values, root)
    mocked = root / "mocked"
    shutil.copytree(workspace.repository, mocked)
    shutil.copy(STAND_IN, mocked / "vllm_model/1/model.py")
    complete(mocked / "vllm_model/config.pbtxt")
    with start_server(mocked, free_address(), root / "server.log") as server:
        yield path, workspace, server.address.grpc


@pytest.mark.parametrize("words", [(), ("--stream",)])
def test_generate_answers_with_text_and_counts(served: Started, words: tuple[str, ...]) -> None:
    path, workspace, url = served
    place = ("--config", str(path), "--workspace", str(workspace.root))
    done = CliRunner().invoke(
        main, ["generate", "--url", url, "--json", "--max-tokens", "5", *place, *words, "hi"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout.splitlines()[0])
    assert answer["text"] == " one two three four five"
    assert answer["output_tokens"] == 5


def test_the_server_is_enough_to_call_it(served: Started) -> None:
    """Without a config, the description comes from the server's model."""
    _, _, url = served
    endpoint = fetch_endpoint(url)
    assert endpoint.text.name == "vllm_model" and endpoint.chats and endpoint.template is not None
    with Client(url) as client:
        pieces = list(client.stream("hi", Options(max_tokens=5, seed=3, stop_words=("x",))))
        texts = [piece.text for piece in pieces if piece.text]
        assert texts == [" one two", " three four", " five"]
        assert [piece.output_tokens for piece in pieces][-1] == 5
        assert {piece.finish_reason for piece in pieces[:-1]} == {None}
        assert (pieces[-1].finish_reason, pieces[-1].prompt_tokens) == ("length", 9)
        with pytest.raises(Unsupported, match="log probabilities"):
            client.generate("hi", Options(log_probs=True))


def test_a_repository_of_others_is_recognized_by_its_model() -> None:
    endpoint = upstreams({"vllm_model": parse('backend: "vllm"')}, "x")
    assert endpoint.text.tensors.sampling == "sampling_parameters" and not endpoint.chats


def test_the_front_answers_chats_before_it(served: Started) -> None:
    _, workspace, url = served
    with (
        fronting_repository(url, workspace.repository) as address,
        openai.OpenAI(base_url=address.url, api_key="any", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(
            model="tiny", max_completion_tokens=3, temperature=0,
            messages=[{"role": "user", "content": "hi"}],
        )  # fmt: skip
    assert answer.choices[0].message.content == " one two three"
    assert answer.usage is not None and answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_serve_says_where_such_a_repository_is_served(served: Started) -> None:
    path, workspace, _ = served
    done = CliRunner().invoke(
        main, ["serve", "--config", str(path), "--workspace", str(workspace.root)]
    )
    assert done.exit_code != 0 and "vllm backend" in done.output
    assert "vllm-python-py3" in done.output
