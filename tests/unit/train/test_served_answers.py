"""Answers of a server that runs the target: the same documents as the target's own, in parallel."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from specpipe.config.training import SelfDistillation
from specpipe.core.artifacts import Workspace
from specpipe.core.conversation import Conversation
from specpipe.core.errors import ConfigError, Unavailable
from specpipe.serve.client import Client
from specpipe.train.answers import answer_prompts
from specpipe.train.medusa import train_medusa
from specpipe.train.served_answers import AHEAD, WAITS_S, ServedTarget, turn_end
from specpipe.train.target import Target, load_target
from tests.helpers.models import make_llama
from tests.helpers.target_server import TargetServer, serving_target
from tests.helpers.wordy import make_wordy

PROMPTS = ["Who jumps?", "And the box?", "Zebras?", "The lazy dog", "Jugs", "Liquor", "Fox"]
HOW = SelfDistillation(max_tokens=10, batch_size=2)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    """Return a random model that only answers in words."""
    folder = make_wordy(tmp_path_factory.mktemp("wordy") / "target")
    return load_target(folder, "float32", folder / "digests.json")


@pytest.fixture
def server(target: Target) -> Iterator[TargetServer]:
    """Return a server of the target that returns tokens."""
    with serving_target(target, "vllm") as found:
        yield found


def ask(server: TargetServer, target: Target, folder: Path, progress=None, wait=None):
    ignore = progress or (lambda done, total: None)
    how = replace(HOW, endpoint=server.url)
    with Client(server.url, key="secret") as client:
        served = ServedTarget(client, target, how, wait or (lambda seconds: None))
        return answer_prompts(target, PROMPTS, how, 0, folder, progress=ignore, served=served)


@pytest.mark.parametrize("owner", ["vllm", "someone"])
def test_the_documents_are_those_of_the_target_in_this_process(
    target: Target, tmp_path: Path, owner: str
) -> None:
    """`someone` returns texts only."""
    with serving_target(target, owner) as server:
        served = ask(server, target, tmp_path)
    own = answer_prompts(target, PROMPTS, HOW, 0, tmp_path, progress=lambda done, total: None)
    for one, other in zip(served, own, strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.learned.tolist() == other.learned.tolist()
    assert set(server.keys) == {"Bearer secret"}
    assert len(list(tmp_path.glob("answers-*"))) == 2, "kept apart from the target's own"


def test_requests_are_in_flight_together(
    server: TargetServer, target: Target, tmp_path: Path
) -> None:
    server.together = threading.Barrier(2, action=lambda: setattr(server, "together", None))
    assert len(ask(server, target, tmp_path)) == len(PROMPTS)


def test_interrupted_answers_are_not_requested_again(
    server: TargetServer, target: Target, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(server, target, tmp_path, progress=stop)
    (file,) = tmp_path.glob("answers-*")
    assert len(file.read_text().splitlines()) == 4
    before = len(server.bodies)
    ask(server, target, tmp_path)
    assert len(server.bodies) - before == len(PROMPTS) - 4


def test_requests_do_not_run_far_ahead_of_a_slow_answer(target: Target) -> None:
    """Answers come in order; later requests are sent meanwhile, up to a bound."""
    bound, total = AHEAD * HOW.batch_size, 100
    reached, answered, too_early = threading.Event(), threading.Event(), list[int]()

    def prompts() -> Iterator[str]:
        for number in range(total):
            if number == bound:
                reached.set()
            if number > bound and not answered.is_set():
                too_early.append(number)
            yield str(number)

    def stream(conversation: Conversation, options: object) -> list[SimpleNamespace]:
        if conversation.messages[0]["content"] == "0":
            assert reached.wait(10)
            answered.set()
        return [SimpleNamespace(text="fox", finish_reason="stop")]

    client = SimpleNamespace(endpoint=SimpleNamespace(tokens=None), stream=stream)
    served = ServedTarget(client, target, replace(HOW, temperature=1.0))  # type: ignore[arg-type]
    answers = list(served.answers(prompts(), [[5]] * total, 0))  # type: ignore[arg-type]
    assert len(answers) == total and not too_early


def test_a_busy_server_is_asked_again_and_then_given_up(
    server: TargetServer, target: Target, tmp_path: Path
) -> None:
    waited: list[float] = []
    server.busy = 2
    assert len(ask(server, target, tmp_path, wait=waited.append)) == len(PROMPTS)
    assert len(waited) == 2
    server.busy = 1000
    with pytest.raises(Unavailable, match="busy"):
        ask(server, target, tmp_path / "again", wait=waited.append)
    assert WAITS_S[-1] in waited


def test_a_server_of_another_model_is_refused(target: Target, tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "other", seed=7)
    other = load_target(folder, "float32", tmp_path / "digests.json")
    with (
        serving_target(other, "vllm") as server,
        pytest.raises(
            ConfigError, match=r"is not the target: of \d+ tokens .* finds \d+ likeliest"
        ),
    ):
        ask(server, target, tmp_path)


def test_heads_are_trained_on_the_answers_of_a_server(
    make_run, workspace: Workspace, tiny: Path, tmp_path: Path
) -> None:
    prompts, key = tmp_path / "prompts.jsonl", tmp_path / "key"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    key.write_text("secret\n")
    schedule = {"epochs": 2, "batch_tokens": 64, "learning_rate": 0.003, "checkpoint_every": 10}
    target = load_target(tiny, "float32", tmp_path / "digests.json")
    with serving_target(target, "vllm") as server:
        distillation = {
            "prompts": str(prompts), "max_tokens": 10, "batch_size": 2, "endpoint": server.url,
            "endpoint_key_file": str(key),
        }  # fmt: skip
        heads = {"num_heads": 1, "schedule": schedule}
        config = make_run(files=[], self_distillation=distillation, medusa=heads)
        said: list[str] = []
        train_medusa(config, workspace, notify=said.append, measure=True)
    assert set(server.keys) == {"Bearer secret"} and len(server.bodies) == len(PROMPTS)
    assert any("measured here for" in line and "answers" not in line for line in said)


def test_an_answer_ends_with_the_token_that_the_template_writes(target: Target) -> None:
    assert target.tokenizer.decode([turn_end(target)]) == "<|end|>"
