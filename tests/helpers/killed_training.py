"""Kills a training again and again: `python -m tests.helpers.killed_training KIND CONFIG FOLDER`.

A process of its own: torch's threads do not survive a fork, so the parent of the children that are
killed must not have computed anything.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from specpipe.config.run_config import read_config
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
KILLS, NEVER = 7, 10**9


@dataclass(frozen=True)
class Outcome:
    """How one process of a training ended, and what it left."""

    code: int
    whole: bool  # the product is there
    equal: bool  # to that of a training which was not killed


def files_of(folder: Path) -> dict[str, str]:
    """Return the digest of every file in a folder, by its name."""
    return {f.name: digest_file(f) for f in folder.rglob("*") if f.is_file()}


def outcomes(kind: str, config_path: Path, folder: Path) -> list[Outcome]:
    """Train once without a kill, then with kills at later and later changes of the file system.

    The first and the last outcome are of processes that were not killed.
    """
    config = read_config(config_path)
    whole, killed = (Workspace(folder / name, config.name) for name in ("whole", "killed"))
    expected = whole.engines / "train" / kind

    def run(workspace: Workspace, steps: int) -> tuple[Outcome, int]:
        def act(step: Step) -> None:
            call_at_every_step(step)
            TRAININGS[kind](config, workspace)

        code, taken = run_in_child(act, steps)
        product = workspace.engines / "train" / kind
        there = (product / MANIFEST).is_file()
        return Outcome(code, there, there and files_of(product) == files_of(expected)), taken

    first, steps = run(whole, NEVER)
    points = [1 + number * steps // (KILLS + 2) for number in range(KILLS)]
    return [first, *(run(killed, point)[0] for point in (*points, NEVER))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = outcomes(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.write(json.dumps([asdict(outcome) for outcome in found]) + "\n")
