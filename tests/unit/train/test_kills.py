"""Trainings that are killed at changes of the file system, again and again, and then resumed."""

import json
import signal
from pathlib import Path

import pytest

from specpipe.core.artifacts import MANIFEST, Workspace, digest_file
from specpipe.train.draft_model import train_draft
from specpipe.train.eagle3 import train_eagle3
from specpipe.train.medusa import train_medusa
from specpipe.train.redrafter import train_redrafter
from tests.helpers.killing import Step, call_at_every_step, run_in_child

TRAININGS = {
    "medusa": train_medusa,
    "redrafter": train_redrafter,
    "eagle3": train_eagle3,
    "draft": train_draft,
}
KILLS = 7
PROMPTS = ["Who jumps?", "And the box?", "Zebras?", "The lazy dog", "Jugs", "Liquor"]


def files_of(folder: Path) -> dict[str, str]:
    return {f.name: digest_file(f) for f in folder.rglob("*") if f.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bytes(
    make_run, tmp_path: Path, kind: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    answers = {"prompts": str(prompts), "max_tokens": 8, "batch_size": 2}
    schedule = {"epochs": 1, "batch_tokens": 128, "learning_rate": 1e-3, "checkpoint_every": 2}
    config = make_run(self_distillation=answers, **{kind: {"schedule": schedule}})
    train = TRAININGS[kind]
    whole = Workspace(tmp_path / "whole", config.name)

    def act(workspace: Workspace, step: Step) -> None:
        call_at_every_step(step)
        train(config, workspace)

    code, steps = run_in_child(lambda step: act(whole, step), steps=10**9)
    assert code == 0
    killed = Workspace(tmp_path / "killed", config.name)
    product = killed.engines / "train" / kind
    for number in range(KILLS):  # later and later: what the last run kept is not done again
        at = 1 + number * steps // (KILLS + 2)
        code, _ = run_in_child(lambda step: act(killed, step), steps=at)
        assert code in (-signal.SIGKILL, 0)
        if (product / MANIFEST).is_file():  # also if it was killed after that
            assert files_of(product) == files_of(whole.engines / "train" / kind)
    assert run_in_child(lambda step: act(killed, step), steps=10**9)[0] == 0
    assert files_of(product) == files_of(whole.engines / "train" / kind)
    left = killed.engines.glob(f"train/.{kind}*")
    assert not list(left), "what killed runs left is removed"
