"""The hold-out is judged block by block: the same figures, and memory that does not grow."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from specpipe.config.training import DraftTraining
from specpipe.train.draft_model import DraftTask, prune
from specpipe.train.features import Features
from specpipe.train.frozen import ROWS, judge
from specpipe.train.target import Target
from specpipe.train.text import Document, Split


def test_a_draft_is_judged_alike_in_blocks_of_any_size(target: Target) -> None:
    rng = np.random.default_rng(0)
    documents = tuple(
        Document(rng.integers(5, 300, size), np.ones(size, bool)) for size in (2, 9, 40)
    )
    model, text = prune(target.model, [0]), Split(documents, documents)
    task = DraftTask(target, model, text, DraftTraining(), seed=0)
    whole, _ = task.judge(documents, rows=1000)
    assert whole["kl"] > 0
    for rows in (1, 7):
        assert task.judge(documents, rows=rows)[0] == pytest.approx(whole, rel=1e-4)


@dataclass
class Net:
    """Guesses what it sees, and notes how many positions it is shown at a time."""

    shown: list[int] = field(default_factory=list)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return iter(())

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        self.shown.append(len(hidden))
        return [hidden]

    def output(self, guess: int, shared: torch.Tensor) -> torch.Tensor:
        return shared


def test_guesses_are_judged_on_a_block_of_positions_at_a_time() -> None:
    count, net = 2 * ROWS + 5, Net()
    labels = np.arange(count) % 4
    hidden = np.eye(4, dtype=np.float16)[np.where(labels == 3, 0, labels)]  # 3 is taken for 0
    spoken = np.stack([labels, labels], axis=1)
    features = Features(hidden, spoken, np.zeros(count, np.int64))
    (accuracy,) = judge(net, torch.eye(4), features).heads
    assert net.shown == [ROWS, ROWS, 5]
    assert accuracy.positions == count
    assert accuracy.top[0] == pytest.approx(float((labels != 3).mean()))
