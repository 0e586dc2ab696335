"""Answers for a training, of specpipe's own server through its OpenAI front."""

from pathlib import Path

import pytest

from specpipe.config.training import SelfDistillation
from specpipe.serve.client import Client
from specpipe.train.answers import answer_prompts
from specpipe.train.served_answers import ServedTarget
from specpipe.train.target import load_target
from tests.helpers.fronts import fronting_repository
from tests.helpers.wordy import make_wordy

pytestmark = pytest.mark.e2e
PROMPTS = ["Who jumps?", "And the box?", "Zebras?", "The lazy dog", "Jugs"]


def test_the_answers_of_the_front_are_those_of_the_target(serve, tmp_path: Path) -> None:
    folder = make_wordy(tmp_path / "wordy")
    target = load_target(folder, "float32", tmp_path / "digests.json")
    how = SelfDistillation(max_tokens=12, batch_size=3)
    own = answer_prompts(target, PROMPTS, how, 0, tmp_path, progress=lambda done, total: None)
    with (
        serve(target={"model": str(folder)}) as served,
        fronting_repository(served.url, served.workspace.repository) as place,
        Client(f"http://{place.host}:{place.port}") as client,
    ):
        other = answer_prompts(
            target, PROMPTS, how, 0, tmp_path / "served", progress=lambda done, total: None,
            served=ServedTarget(client, target, how),
        )  # fmt: skip
    assert [d.tokens.tolist() for d in other] == [d.tokens.tolist() for d in own]
