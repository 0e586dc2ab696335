"""One of several processes of a training: `python -m tests.helpers.training_process OUT CONFIG`.

It writes the gradients of a step into OUT/gradients-RANK.pt, and trains Medusa heads and an EAGLE-3
drafter for a run.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from specpipe.config.run_config import read_config
from specpipe.config.training import MedusaTraining, Schedule, TrainOptions
from specpipe.core.artifacts import Workspace
from specpipe.train.eagle3 import train_eagle3
from specpipe.train.features import Features
from specpipe.train.frozen import FrozenTask
from specpipe.train.loop import differentiate
from specpipe.train.loss import Vocabulary
from specpipe.train.medusa import MedusaHeads, train_medusa
from specpipe.train.placement import TrainingPlace, place
from specpipe.train.sources import StoredFeatures

WIDTH, TOKENS = 16, 320


def step_gradients(placement: TrainingPlace) -> tuple[float, list[torch.Tensor]]:
    """Return the loss and the gradients of a step of heads with random weights."""
    rng = np.random.default_rng(0)
    spoken = rng.integers(0, TOKENS, (41, 3))
    hidden = rng.normal(size=(41, WIDTH)).astype(np.float16)
    features = Features(hidden, spoken, np.arange(41) // 10)
    output = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    net = MedusaHeads(2, 1, output, share_output=True)
    options = MedusaTraining(num_heads=2, schedule=Schedule(batch_tokens=25))
    source, words = StoredFeatures(features, 25, 0), Vocabulary(TOKENS, np.arange(10), 5)
    task = FrozenTask(net, output, source, features, words, options, 0, 0, placement.world)
    weights = list(net.parameters())
    loss = differentiate(task, 0, weights, placement)
    return loss, [w.grad for w in weights if w.grad is not None]


def main(out: Path, config: Path) -> None:
    """Join the other processes, write the gradients, and train."""
    placement = place(TrainOptions(device="cpu"))
    torch.save(step_gradients(placement), out / f"gradients-{placement.rank}.pt")
    run = read_config(config)
    train_medusa(run, Workspace(out / "together", run.name), measure=True)
    train_eagle3(run, Workspace(out / "together", run.name))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
