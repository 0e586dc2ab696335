"""Medusa-1: heads learn from the hidden states of a backbone that stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from specpipe.contracts import Ints
from specpipe.recipe import MedusaTraining
from specpipe.train.accuracy import Calibration, HeadAccuracy, calibrate, label_ranks, measure
from specpipe.train.features import Features
from specpipe.train.heads import MedusaHeads
from specpipe.train.loop import Group, batch_of
from specpipe.train.loss import Vocabulary, cross_entropy, weighted_sum
from specpipe.train.text import Bools

CURVE_POSITIONS = 2048  # of the hold-out, evenly spread, that a point of the curve looks at


@dataclass(frozen=True, eq=False)
class HeadsTask:
    """Training of heads on cached features."""

    heads: MedusaHeads
    output: torch.Tensor  # [V, D]  the backbone's LM head
    training: Features
    held_out: Features
    vocabulary: Vocabulary
    options: MedusaTraining
    seed: int

    def groups(self) -> list[Group]:
        """Return the heads' weights."""
        return [Group(tuple(self.heads.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the weighted loss of all heads on `batch_tokens` positions."""
        size = self.options.schedule.batch_tokens
        rows = np.sort(batch_of(step, size, len(self.training), self.seed))
        hidden = torch.from_numpy(self.training.hidden[rows]).float()
        labels = torch.from_numpy(self.training.labels[rows])
        rng = np.random.default_rng([self.seed, 1, step])
        return heads_loss(
            self.heads, hidden, labels, self.output, self.vocabulary, self.options, rng
        )

    def evaluate(self) -> Mapping[str, float]:
        """Return top-1 of every head on a part of the hold-out."""
        stride = max(1, len(self.held_out) // CURVE_POSITIONS)
        part = Features(self.held_out.hidden[::stride], self.held_out.labels[::stride])
        accuracies = measure(*_ranks(self.heads, self.output, part))
        return {f"head {k} top-1": a.top[0] for k, a in enumerate(accuracies)}


def heads_loss(
    heads: MedusaHeads,
    hidden: torch.Tensor,
    labels: torch.Tensor,
    output: torch.Tensor,
    vocabulary: Vocabulary,
    options: MedusaTraining,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Return sum of decay^k times the cross entropy of head k: hidden [N, D], labels [N, heads]."""
    chosen = vocabulary.candidates(labels, rng)
    losses = [
        cross_entropy(features, heads.output(k, output), chosen, k)
        for k, features in enumerate(heads.features(hidden))
    ]
    return weighted_sum(losses, options.head_loss_decay)


def judge(
    heads: MedusaHeads, output: torch.Tensor, held_out: Features
) -> tuple[list[HeadAccuracy], Calibration]:
    """Return the accuracies of every head on the whole hold-out."""
    found = _ranks(heads, output, held_out)
    return measure(*found), calibrate(*found)


@torch.no_grad()
def _ranks(
    heads: MedusaHeads, output: torch.Tensor, part: Features
) -> tuple[list[Ints], list[Bools]]:
    """Return ranks and label marks of every head, heads x [N] each."""
    features = heads.features(torch.from_numpy(np.array(part.hidden)).float())
    labels = torch.from_numpy(part.labels)
    ranks = [label_ranks(f, heads.output(k, output), labels[:, k]) for k, f in enumerate(features)]
    return ranks, [part.labels[:, k] >= 0 for k in range(len(features))]
