"""A packaged `backend: llmapi` run in a real tritonserver, with a mock of TensorRT-LLM's model.

The mock has the tensors, refusals and streams of that model; its decoding is made up.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.repository.description import read_endpoint, token_counter
from specpipe.repository.placement import FILE
from specpipe.serve.address import free_address
from specpipe.serve.client import Client, Options
from specpipe.serve.tritonserver import start_server
from tests.helpers.built_runs import built_run
from tests.helpers.fronts import fronting_repository
from tests.helpers.models import TEMPLATE

pytestmark = pytest.mark.e2e

STAND_IN = Path(__file__).parents[1] / "standins/llmapi"
ANSWER = " one two thrée four five six"
Started = tuple[Path, Workspace, str]  # config, workspace, gRPC url


@contextmanager
def started(tiny: Path, root: Path, *, decoupled: bool) -> Iterator[Started]:
    values = {
        "name": "api", "target": {"model": str(tiny)},
        "engine": {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16", "tp_size": 1,
                   "max_input_len": 100, "max_seq_len": 200},
        "speculation": {"method": "prompt_lookup", "num_draft_tokens": 3},
        "serving": {"decoupled": decoupled}, "validate": {"num_prompts": 1, "max_tokens": 7},
    }  # fmt: skip
    path, workspace = built_run(values, root)
    placement = (workspace.repository / FILE).read_bytes()
    (workspace.repository / FILE).unlink()  # which asks for GPUs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMAPI_MODEL_DIR", str(STAND_IN))
        with start_server(workspace.repository, free_address(), root / "server.log") as server:
            (workspace.repository / FILE).write_bytes(placement)
            yield path, workspace, server.address.grpc


@pytest.fixture(scope="module")
def served(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with started(tiny, tmp_path_factory.mktemp("api"), decoupled=True) as found:
        yield found


def generate(served: Started, *more: str, config: bool = True) -> dict[str, object]:
    path, workspace, url = served
    place = ("--config", str(path), "--workspace", str(workspace.root)) if config else ()
    words = ["generate", "--url", url, "--json", "--max-tokens", "7", *place, *more, "hi"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[0])
    return answer


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_generate_answers_with_text_figures_and_acceptance(
    served: Started, stream: tuple[str, ...]
) -> None:
    answer = generate(served, *stream)
    assert answer["text"] == ANSWER
    assert (answer["total_draft_tokens"], answer["total_accepted_draft_tokens"]) == (7, 3)
    count: int = answer["output_tokens"]  # type: ignore[assignment]  # by the tokenizer
    assert count > 0


def test_without_a_config_the_server_says_how_it_is_called(served: Started) -> None:
    _, workspace, url = served
    assert Client(url).endpoint == read_endpoint(workspace.repository)
    answer = generate(served, config=False)
    assert answer["text"] == ANSWER and answer["output_tokens"] is None


def test_the_tokenizer_and_the_chat_template_are_those_of_the_source(served: Started) -> None:
    _, workspace, url = served
    endpoint = Client(url).endpoint
    assert (workspace.repository / endpoint.tokenizer / "tokenizer.json").exists()
    assert endpoint.chats and endpoint.template is not None
    assert endpoint.template.chat.templates == {"default": TEMPLATE}
    with pytest.raises(ConfigError, match=r"contains '<\|end\|>', which the server would read"):
        Client(url).generate("Hi.<|end|>", chat=True)


def test_pieces_of_a_stream_do_not_repeat_what_was_there(served: Started) -> None:
    pieces = [p.text for p in Client(served[2]).stream("hi", Options(max_tokens=7))]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 2 and not any("\ufffd" in piece for piece in pieces)


def test_the_prompt_is_never_part_of_the_answer_and_stop_words_end_it(served: Started) -> None:
    client = Client(served[2])
    assert client.generate("a prompt", Options(max_tokens=7)).text == ANSWER
    options = Options(max_tokens=7, stop_words=(" four",), temperature=0.5, top_k=3, seed=1)
    assert client.generate("hi", options).text == " one two thrée"


def test_what_no_request_can_change_is_refused(served: Started) -> None:
    client = Client(served[2])
    with pytest.raises(Unsupported, match="no request can change that"):
        client.generate("hi", Options(num_draft_tokens=0))
    with pytest.raises(Unsupported, match="no model that takes tokens"):
        list(client.stream_tokens([1], Options()))


def test_a_run_that_answers_in_one_piece_does_not_stream(tiny: Path, tmp_path: Path) -> None:
    with started(tiny, tmp_path, decoupled=False) as (_, _, url):
        client = Client(url)
        assert client.generate("hi", Options(max_tokens=7)).text == ANSWER
        with pytest.raises(Unsupported, match="cannot stream"):
            list(client.stream("hi"))


def test_validate_measures_what_the_model_gives_and_names_what_it_does_not(served: Started) -> None:
    path, workspace, url = served
    arguments = ("--config", str(path), "--workspace", str(workspace.root), "--url", url)
    done = CliRunner().invoke(main, ["validate", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output  # no gate is configured
    report = json.loads((workspace.reports / "report.json").read_text())
    arms = report["metrics"]["tokens_per_second"]["arms"]
    assert set(arms) == {"reference", "speculative"} and arms["speculative"]["median"] > 0
    assert report["metrics"]["exact_match"]["arms"]["speculative"]["median"] == 0
    left_out = set(report["left_out"])
    assert {"greedy_agreement", "perplexity", "speedup_over_plain"} <= left_out


def test_the_openai_front_counts_the_tokens_that_the_model_does_not_report(
    served: Started,
) -> None:
    _, workspace, url = served
    messages = [{"role": "user", "content": "hi"}]
    with fronting_repository(url, workspace.repository) as address:
        with openai.OpenAI(base_url=address.url, api_key="x", timeout=60) as client:
            answer = client.chat.completions.create(
                model="tiny", messages=messages, temperature=0, max_tokens=50
            )
            chunks = client.chat.completions.create(
                model="tiny", messages=messages, temperature=0, max_tokens=50, stream=True
            )
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    count = token_counter(workspace.repository, read_endpoint(workspace.repository))
    assert answer.choices[0].message.content == text and answer.usage is not None
    assert count is not None and answer.usage.completion_tokens == count(text)
    assert answer.usage.prompt_tokens > 0
