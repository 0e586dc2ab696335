"""Trainings that are killed at changes of the file system, again and again, and then resumed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.killed_training import TRAININGS

PROMPTS = ["Who jumps?", "And the box?", "Zebras?", "The lazy dog", "Jugs", "Liquor"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", TRAININGS)
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_bytes(
    make_run, tmp_path: Path, kind: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS))
    answers = {"prompts": str(prompts), "max_tokens": 8, "batch_size": 2}
    schedule = {"epochs": 1, "batch_tokens": 128, "learning_rate": 1e-3, "checkpoint_every": 2}
    config = make_run(self_distillation=answers, **{kind: {"schedule": schedule}})
    words = ["-m", "tests.helpers.killed_training", kind, config.path, str(tmp_path)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    first, *killed, last = json.loads(done.stdout.splitlines()[-1])
    assert first["code"] == last["code"] == 0 and first["whole"] and last["equal"]
    assert {outcome["code"] for outcome in killed} <= {-signal.SIGKILL, 0}
    assert [outcome["code"] for outcome in killed].count(-signal.SIGKILL) >= 4
    assert all(outcome["equal"] for outcome in killed if outcome["whole"])
    left = tmp_path.glob(f"killed/engines/*/train/.{kind}*")
    assert not list(left), "what killed runs left is removed"
