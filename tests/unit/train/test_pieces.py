"""Evaluation in pieces, states that resume, and disks that are full."""

import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.config.training import Schedule
from specpipe.core.errors import StageFailed
from specpipe.train.features import Features, read_features
from specpipe.train.frozen import judge
from specpipe.train.loop import Group, TrainingPlan, train
from specpipe.train.medusa import MedusaHeads
from specpipe.train.state_file import BATCH, StateFile
from specpipe.train.target import Target
from tests.helpers.tensor_sizes import LargestTensor
from tests.helpers.trainings import documents, judging


def largest(act: Callable[[], object]) -> int:
    with LargestTensor() as seen:
        act()
    return seen.size


def judged_features(positions: int) -> int:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(positions, 16)).astype(np.float16)
    found = Features(hidden, rng.integers(0, 320, (positions, 3)), np.zeros(positions, np.int64))
    output = torch.randn(320, 16)
    net = MedusaHeads(2, 1, output, share_output=True)
    return largest(lambda: judge(net, output, found))


def test_the_memory_of_judging_heads_does_not_grow_with_the_hold_out() -> None:
    few, many = judged_features(5000), judged_features(20000)
    assert few == many < 5000 * 320 * 4, "not the logits of all positions"


@pytest.mark.parametrize("kind", ["draft", "medusa2", "eagle3"])
def test_the_memory_of_judging_documents_does_not_grow_with_their_number(
    target: Target, tmp_path: Path, kind: str
) -> None:
    def measured(count: int) -> int:
        return largest(judging(kind, target, documents(count), tmp_path))

    assert measured(2) == measured(6) < 6 * 40 * 320 * 4


class Counted:
    """Computes documents of 10 bytes; may be killed at a batch, and counts what it computes."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at = killed_at
        self.computed: list[int] = []

    def __call__(self, chosen: Sequence[int]) -> Iterator[bytes]:
        if len(self.computed) == self.killed_at:
            raise KeyboardInterrupt
        for number in chosen:
            self.computed.append(number)
            yield bytes([number]) * (number % 10)


def state_file(folder: Path, compute: Counted) -> StateFile:
    numbers = range(5 * BATCH + 3)
    sizes, lengths = [number % 10 for number in numbers], [number % 7 for number in numbers]
    return StateFile(folder / "states.bin", sizes, lengths, compute, sync_s=0.0)


def test_killed_states_resume_after_the_last_batch_on_the_disk(tmp_path: Path) -> None:
    whole, killed, resumed = Counted(), Counted(3 * BATCH), Counted()
    state_file(tmp_path / "whole", whole).require(lambda done, total: None)
    with pytest.raises(KeyboardInterrupt):
        state_file(tmp_path / "killed", killed).require(lambda done, total: None)
    assert not (tmp_path / "killed/states.bin").exists()
    state_file(tmp_path / "killed", resumed).require(lambda done, total: None)
    assert killed.computed + resumed.computed == whole.computed
    assert [number % 7 for number in whole.computed] == sorted(
        (number % 7 for number in range(5 * BATCH + 3)), reverse=True
    ), "documents of like length together, the longest first"
    content = b"".join(bytes([number]) * (number % 10) for number in range(5 * BATCH + 3))
    assert (tmp_path / "whole/states.bin").read_bytes() == content, "in the order of the documents"
    files = [tmp_path / name / "states.bin" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [f.name for f in files[1].parent.iterdir()] == ["states.bin"]


def test_states_of_another_size_are_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        state_file(tmp_path, Counted(3 * BATCH)).require(lambda done, total: None)
    resumed = Counted()
    (tmp_path / "states.tmp").write_bytes(b"short")
    state_file(tmp_path, resumed).require(lambda done, total: None)
    assert len(resumed.computed) == 5 * BATCH + 3


@pytest.fixture
def small_files() -> Iterator[Callable[[int], None]]:
    """Return a function that limits the size of the files that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Growing:
    """Trains one weight, whose size is given."""

    def __init__(self, size: int) -> None:
        self.weight = torch.nn.Parameter(torch.ones(size))

    def groups(self) -> list[Group]:
        return [Group((self.weight,))]

    def loss(self, step: int) -> torch.Tensor:
        return self.weight.pow(2).mean()

    def evaluate(self) -> dict[str, float]:
        return {}


def test_a_checkpoint_that_the_disk_refuses_tells_what_is_left(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    """The limit makes torch raise what it raises for a full disk: a RuntimeError."""
    plan = TrainingPlan(Schedule(checkpoint_every=2), steps=6)
    file = tmp_path / "resume.pt"

    def limited(done: int, total: int) -> None:
        small_files(100_000 if done > 2 else 10_000_000)

    with pytest.raises(StageFailed) as failure:
        train(Growing(50_000), plan, file, "k", progress=limited)
    message = str(failure.value)
    assert f"{file} cannot be written: " in message
    assert f"the checkpoint of step 2 stays in {tmp_path}" in message
    assert "run the same command again, which resumes" in message
    assert [f.name for f in tmp_path.iterdir()] == ["resume.pt"], "the half checkpoint is deleted"
    steps: list[int] = []
    small_files(10_000_000)
    train(Growing(50_000), plan, file, "k", progress=lambda done, total: steps.append(done))
    assert steps[0] == 3


def test_a_first_checkpoint_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, small_files: Callable[[int], None]
) -> None:
    plan = TrainingPlan(Schedule(checkpoint_every=2), steps=6)
    small_files(100_000)
    with pytest.raises(StageFailed, match="nothing to resume from is in "):
        train(Growing(50_000), plan, tmp_path / "c.pt", "k", progress=lambda done, total: None)
    (tmp_path / "answers-1.jsonl").touch()
    (tmp_path / "features-1.f16").touch()
    with pytest.raises(StageFailed, match="answers and hidden states stay in "):
        train(Growing(50_000), plan, tmp_path / "c.pt", "k", progress=lambda done, total: None)


def test_hidden_states_without_room_are_refused_before_they_are_computed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    with pytest.raises(StageFailed, match=r"the hidden states need 0\.0 GiB in .*\n.*train.out"):
        read_features(target, documents(4), 2, tmp_path, progress=lambda done, total: None)
    assert not list(tmp_path.iterdir())
