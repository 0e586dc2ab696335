"""A drafter carries its target: plans compare it. Its files have the modes of the user's umask."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.belonging import fingerprint
from specpipe.checkpoint.weight_files import weight_files
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.make_plan import make_plan
from specpipe.train.draft_model import train_draft
from specpipe.train.eagle3 import train_eagle3
from specpipe.train.medusa import train_medusa
from specpipe.train.redrafter import train_redrafter
from tests.helpers.models import make_llama

ONCE = {"epochs": 1, "batch_tokens": 1024, "learning_rate": 1e-3, "checkpoint_every": 50}
USED_BY = {
    "medusa": (train_medusa, lambda path: {"method": "medusa", "heads": path}),
    "redrafter": (train_redrafter, lambda path: {"method": "redrafter", "drafter": path}),
    "eagle3": (train_eagle3, lambda path: {"method": "eagle3", "draft": {"model": path}}),
    "draft": (train_draft, lambda path: {"method": "draft_model", "draft": {"model": path}}),
}


@pytest.fixture
def private_umask() -> Iterator[int]:
    """Set a umask that lets the group read, as some machines have it."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another random model of the sizes of the tiny one."""
    return make_llama(tmp_path_factory.mktemp("other") / "target", seed=5)


def planned(write_config, tmp_path: Path, target: Path, speculation: dict):
    path = write_config(target={"model": str(target)}, speculation=speculation)
    config = read_config(path)
    return make_plan(config, Workspace(tmp_path / "plans", config.name))


def trained_elsewhere(plan) -> list[str]:
    return [note for note in plan.notes if "trained for other weights" in note]


@pytest.mark.parametrize("kind", USED_BY)
def test_a_drafter_of_another_target_is_noted(
    make_run, workspace: Workspace, write_config, tmp_path: Path, tiny: Path, other: Path,
    private_umask: int, kind: str,
) -> None:  # fmt: skip
    train, used_by = USED_BY[kind]
    product = train(make_run(**{kind: {"schedule": ONCE}}), workspace).path
    speculation = used_by(str(product))
    own = planned(write_config, tmp_path, tiny, speculation)
    assert not own.rejections and not trained_elsewhere(own)
    foreign = planned(write_config, tmp_path, other, speculation)
    assert not foreign.rejections and len(trained_elsewhere(foreign)) == 1
    modes = {f.stat().st_mode & 0o777 for f in workspace.root.rglob("*") if f.is_file()}
    assert modes == {0o666 & ~private_umask}


def test_heads_of_a_changed_target_are_refused_without_their_backbone(
    make_run, workspace: Workspace, write_config, tmp_path: Path, tiny: Path
) -> None:
    config = make_run(medusa={"stage": "medusa2", "lora_rank": 2, "schedule": ONCE})
    product = train_medusa(config, workspace).path
    speculation = {"method": "medusa", "heads": str(product)}
    (refused,) = planned(write_config, tmp_path, tiny, speculation).rejections
    assert "was trained together with a changed target (medusa2)" in refused.reason
    assert "set target.model to the folder backbone/" in refused.hint
    served = planned(write_config, tmp_path, product / "backbone", speculation)
    assert not served.rejections and not trained_elsewhere(served)


def test_a_fingerprint_does_not_depend_on_files(tiny: Path, other: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    parts = weight_files(tmp_path / "parts")
    assert len(parts) > 1 and fingerprint(parts) == fingerprint(weight_files(tiny))
    assert fingerprint(weight_files(other)) != fingerprint(weight_files(tiny))
    assert fingerprint([tmp_path / "model.gguf"]) is None
