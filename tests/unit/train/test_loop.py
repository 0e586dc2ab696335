"""The loop: its schedule, its order, and a resumed run that ends like an uninterrupted one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from specpipe.config.training import Schedule
from specpipe.core.errors import ConfigError
from specpipe.train.loop import Group, TrainingPlan, batch_of, steps_per_epoch, train

PLAN = TrainingPlan(Schedule(learning_rate=0.05, warm_up=0.2, checkpoint_every=4), steps=20)


class Line:
    """Fits y = a x to ten points, one a step; may be killed before a step."""

    def __init__(self, killed_at: int | None = None, gift: float = 0.0) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.killed_at = killed_at
        self.gift = gift

    def groups(self) -> list[Group]:
        return [Group((self.weight,))]

    def loss(self, step: int) -> torch.Tensor:
        if step == self.killed_at:
            raise KeyboardInterrupt
        x = float(batch_of(step, 1, 10, seed=0)[0]) + 1
        return ((self.weight - 0.5) * x).pow(2).sum() + self.gift

    def evaluate(self) -> Mapping[str, float]:
        return {"a": float(self.weight.detach())}


def run(task: Line, file: Path, key: str = "k", seen: list[int] | None = None):
    steps = [] if seen is None else seen
    return train(task, PLAN, file, key, progress=lambda done, total: steps.append(done))


def test_it_learns_and_the_curve_has_a_point_at_every_checkpoint(tmp_path: Path) -> None:
    curve = run(Line(), tmp_path / "c.pt")
    assert [p.step for p in curve] == [0, 4, 8, 12, 16, 20]
    assert curve[0].held_out["a"] == 0 and abs(curve[-1].held_out["a"] - 0.5) < 0.1
    assert curve[-1].loss < curve[1].loss


@pytest.mark.parametrize("killed_at", [3, 8, 13, 19])
def test_a_killed_run_resumes_to_the_same_weights_and_curve(tmp_path: Path, killed_at: int) -> None:
    whole, resumed, steps = Line(), Line(), []
    curve = run(whole, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(Line(killed_at), tmp_path / "c.pt")
    assert run(resumed, tmp_path / "c.pt", seen=steps) == curve
    assert torch.equal(resumed.weight, whole.weight)
    assert steps[0] == killed_at // 4 * 4 + 1, "resumes at the last checkpoint"


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    steps: list[int] = []
    run(Line(), tmp_path / "c.pt", key="one")
    run(Line(), tmp_path / "c.pt", key="other", seen=steps)
    assert steps[0] == 1


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(b"half of a file")
    with pytest.raises(ConfigError, match=r"c\.pt: damaged .*\n.*delete it"):
        run(Line(), tmp_path / "c.pt")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the loss is nan at step 0"):
        run(Line(gift=float("nan")), tmp_path / "c.pt")


def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    rates = [PLAN.learning_rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert rates[4] == pytest.approx(0.05) and rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_an_epoch_sees_every_item_once_and_the_next_in_another_order() -> None:
    steps = steps_per_epoch(3, 10)
    first = np.concatenate([batch_of(s, 3, 10, seed=1) for s in range(steps)])
    second = np.concatenate([batch_of(s, 3, 10, seed=1) for s in range(steps, 2 * steps)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
