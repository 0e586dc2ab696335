"""Guessers that learn from the hidden states of a backbone that stays as it is (Medusa-1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from specpipe.config.training import GuesserTraining
from specpipe.core.contracts import Ints
from specpipe.train.accuracy import Calibration, HeadAccuracy, calibrate, label_ranks, measure
from specpipe.train.features import Features
from specpipe.train.loop import Group, batch_of
from specpipe.train.loss import Lesson, Vocabulary, cross_entropy, weighted_sum
from specpipe.train.text import Bools

ROWS = 4096  # positions of the hold-out whose features are in memory together
CURVE_POSITIONS = 2048  # of the hold-out, evenly spread, that a point of the curve looks at


class GuesserNet(Protocol):
    """A net with one guess for each of the next places: Medusa's heads, a drafter's steps."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what is learned."""
        ...

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        """Return what each guess hands to its output layer, guesses x [N, D].

        `hidden` [N, D] are the target's states; `spoken` [N, 1 + guesses] the tokens after each,
        -1 where there is none. Guess k is of spoken[:, k + 1], and may look at those before it.
        """
        ...

    def output(self, guess: int, shared: torch.Tensor) -> torch.Tensor:
        """Return the output layer of a guess: one of its own, or the `shared` one, [V, D]."""
        ...


@dataclass(frozen=True, eq=False)
class GuesserTask:
    """Training of a guesser on cached features."""

    net: GuesserNet
    output: torch.Tensor  # [V, D]  the backbone's LM head
    training: Features
    held_out: Features
    vocabulary: Vocabulary
    options: GuesserTraining
    seed: int

    def groups(self) -> list[Group]:
        """Return the guesser's weights."""
        return [Group(tuple(self.net.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the weighted loss of all guesses at `batch_tokens` positions."""
        size = self.options.schedule.batch_tokens
        rows = np.sort(batch_of(step, size, len(self.training), self.seed))
        hidden = torch.from_numpy(self.training.hidden[rows]).float()
        spoken = torch.from_numpy(self.training.spoken[rows])
        rng = np.random.default_rng([self.seed, 1, step])
        lessons = self._lessons(rows) if self.options.soft_labels else []
        return guesses_loss(
            self.net, hidden, spoken, self.output, self.vocabulary, self.options, rng, lessons
        )

    def _lessons(self, rows: Ints) -> list[Lesson]:
        """Return what the target sees where each guess of `rows` is made, as far as it is known."""
        places = [self.training.ahead(rows, k) for k in range(self.training.spoken.shape[1] - 1)]
        return [
            Lesson(
                torch.from_numpy(self.training.hidden[np.maximum(at, 0)]),
                self.output,
                torch.from_numpy(at >= 0),
            )
            for at in places
        ]

    def evaluate(self) -> Mapping[str, float]:
        """Return top-1 of every guess on a part of the hold-out."""
        stride = max(1, len(self.held_out) // CURVE_POSITIONS)
        whole = self.held_out
        part = Features(whole.hidden[::stride], whole.spoken[::stride], whole.run[::stride])
        accuracies = measure(*_ranks(self.net, self.output, part))
        return {f"head {k} top-1": a.top[0] for k, a in enumerate(accuracies)}


def guesses_loss(
    net: GuesserNet,
    hidden: torch.Tensor,
    spoken: torch.Tensor,
    output: torch.Tensor,
    vocabulary: Vocabulary,
    options: GuesserTraining,
    rng: np.random.Generator,
    lessons: Sequence[Lesson] = (),
) -> torch.Tensor:
    """Return sum of decay^k times the cross entropy of guess k; shapes as in `GuesserNet`.

    `lessons`, one a guess, give the distributions to learn; without them it is the tokens only.
    """
    chosen = vocabulary.candidates(spoken[:, 1:], rng)
    losses = [
        cross_entropy(features, net.output(k, output), chosen, k, lessons[k] if lessons else None)
        for k, features in enumerate(net.features(hidden, spoken))
    ]
    return weighted_sum(losses, options.head_loss_decay)


def judge(
    net: GuesserNet, output: torch.Tensor, held_out: Features
) -> tuple[list[HeadAccuracy], Calibration]:
    """Return the accuracies of every guess on the whole hold-out."""
    found = _ranks(net, output, held_out)
    return measure(*found), calibrate(*found)


@torch.no_grad()
def _ranks(net: GuesserNet, output: torch.Tensor, part: Features) -> tuple[list[Ints], list[Bools]]:
    """Return ranks and label marks of every guess, guesses x [N] each; block by block."""
    blocks: list[list[Ints]] = []
    for begin in range(0, len(part), ROWS):
        spoken = torch.from_numpy(part.spoken[begin : begin + ROWS])
        hidden = torch.from_numpy(np.array(part.hidden[begin : begin + ROWS])).float()
        features = net.features(hidden, spoken)
        blocks.append(
            [
                label_ranks(f, net.output(k, output), spoken[:, k + 1])
                for k, f in enumerate(features)
            ]
        )
    ranks = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    return ranks, [part.spoken[:, k + 1] >= 0 for k in range(len(ranks))]
