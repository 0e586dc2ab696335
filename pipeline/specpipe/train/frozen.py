"""Training of Medusa heads or a ReDrafter on the cached hidden states of a frozen target.

The nets are in `medusa` and `redrafter`. Training that changes the target is in `joint`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from specpipe.checkpoint.drafter import CALIBRATION
from specpipe.config.training import DrafterTraining
from specpipe.core.artifacts import write_text
from specpipe.core.contracts import Ints
from specpipe.train.accuracy import (
    DrafterCalibration,
    HeadAccuracy,
    calibrate,
    label_ranks,
    measure,
)
from specpipe.train.features import Features, read_features
from specpipe.train.loop import Group, Point, batch_of, steps_per_epoch
from specpipe.train.loss import Lesson, Vocabulary, cross_entropy, frequent_tokens, weighted_sum
from specpipe.train.produce import TrainingJob, text_facts
from specpipe.train.report import TrainingReport
from specpipe.train.text import Bools

ROWS = 4096  # positions of the hold-out whose features are in memory together
CURVE_POSITIONS = 2048  # of the hold-out, evenly spread, that a point of the curve looks at


class DrafterNet(Protocol):
    """A net that drafts several tokens: one per Medusa head, or one per step of a ReDrafter."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield what is learned."""
        ...

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        """Return the input of each draft token's output layer, draft tokens x [N, D].

        `hidden` [N, D] are the target's states; `spoken` [N, 1 + draft tokens] the tokens after
        each, -1 where there is none. Draft token k predicts spoken[:, k + 1], and may depend on
        those before it.
        """
        ...

    def output(self, step: int, shared: torch.Tensor) -> torch.Tensor:
        """Return the output layer of a draft token: its own, or the `shared` one, [V, D]."""
        ...


@dataclass(frozen=True, eq=False)
class FrozenTask:
    """Training of a drafter on cached features."""

    net: DrafterNet
    output: torch.Tensor  # [V, D]  the backbone's LM head
    training: Features
    held_out: Features
    vocabulary: Vocabulary
    options: DrafterTraining
    seed: int

    def groups(self) -> list[Group]:
        """Return the drafter's weights."""
        return [Group(tuple(self.net.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the weighted loss of all draft tokens at `batch_tokens` positions."""
        size = self.options.schedule.batch_tokens
        rows = np.sort(batch_of(step, size, len(self.training), self.seed))
        hidden = torch.from_numpy(self.training.hidden[rows]).float()
        spoken = torch.from_numpy(self.training.spoken[rows])
        rng = np.random.default_rng([self.seed, 1, step])
        lessons = self._lessons(rows) if self.options.soft_labels else []
        return drafter_loss(
            self.net, hidden, spoken, self.output, self.vocabulary, self.options, rng, lessons
        )

    def _lessons(self, rows: Ints) -> list[Lesson]:
        """Return the target's state at the place of each draft token of `rows`, as far as known."""
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
        """Return top-1 of every draft token on a part of the hold-out."""
        stride = max(1, len(self.held_out) // CURVE_POSITIONS)
        whole = self.held_out
        part = Features(whole.hidden[::stride], whole.spoken[::stride], whole.run[::stride])
        accuracies = measure(*_ranks(self.net, self.output, part))
        return {f"head {k} top-1": a.top[0] for k, a in enumerate(accuracies)}


def drafter_loss(
    net: DrafterNet,
    hidden: torch.Tensor,
    spoken: torch.Tensor,
    output: torch.Tensor,
    vocabulary: Vocabulary,
    options: DrafterTraining,
    rng: np.random.Generator,
    lessons: Sequence[Lesson] = (),
) -> torch.Tensor:
    """Return the sum of decay^k times the cross entropy of draft token k (see `DrafterNet`).

    `lessons`, one per draft token, are the distributions to learn; without them, the tokens.
    """
    chosen = vocabulary.candidates(spoken[:, 1:], rng)
    losses = [
        cross_entropy(features, net.output(k, output), chosen, k, lessons[k] if lessons else None)
        for k, features in enumerate(net.features(hidden, spoken))
    ]
    return weighted_sum(losses, options.head_loss_decay)


def judge(
    net: DrafterNet, output: torch.Tensor, held_out: Features
) -> tuple[list[HeadAccuracy], DrafterCalibration]:
    """Return the accuracies of every draft token on the whole hold-out."""
    found = _ranks(net, output, held_out)
    return measure(*found), calibrate(*found)


@torch.no_grad()
def _ranks(net: DrafterNet, output: torch.Tensor, part: Features) -> tuple[list[Ints], list[Bools]]:
    """Return ranks and label marks, draft tokens x [N] each; block by block."""
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


@dataclass(frozen=True)
class Learned:
    """What a training came to."""

    curve: tuple[Point, ...]
    before: Sequence[HeadAccuracy]
    after: Sequence[HeadAccuracy]
    calibration: DrafterCalibration


def learn(job: TrainingJob, net: DrafterNet, options: DrafterTraining, draft_len: int) -> Learned:
    """Train `net`, which drafts `draft_len` tokens, on the frozen target's hidden states."""
    output, seed = job.target.output, job.config.train.seed
    training, held_out = _features(job, draft_len)
    before, _ = judge(net, output, held_out)
    tokens = vocabulary(job, training.spoken[:, 1:], options)
    task = FrozenTask(net, output, training, held_out, tokens, options, seed)
    steps = steps_per_epoch(options.schedule.batch_tokens, len(training))
    curve = job.train(task, options.schedule, steps)
    return Learned(curve, before, *judge(net, output, held_out))


def _features(job: TrainingJob, draft_len: int) -> tuple[Features, Features]:
    job.notify("computing the hidden states of the target that are not cached")
    first, second = (
        read_features(job.target, documents, draft_len, job.work, progress=job.progress)
        for documents in (job.text.training, job.text.held_out)
    )
    return first, second


def vocabulary(job: TrainingJob, labels: Ints, options: DrafterTraining) -> Vocabulary:
    """Return the tokens that a loss covers, with the most frequent of `labels`."""
    frequent = frequent_tokens(labels, options.loss_vocabulary)
    return Vocabulary(int(job.target.output.shape[0]), frequent, options.loss_samples)


def write_calibration(calibration: DrafterCalibration, folder: Path) -> None:
    """Write calibration.json, which trees are grown from."""
    text = json.dumps(calibration.to_json(), indent=1, sort_keys=True) + "\n"
    write_text(folder / CALIBRATION, text)


def report(
    title: str, job: TrainingJob, options: DrafterTraining, learned: Learned
) -> TrainingReport:
    """Return the report of a training."""
    return TrainingReport(
        title,
        {
            **text_facts(job),
            **{k: v for k, v in asdict(options).items() if k != "schedule"},
            **asdict(options.schedule),
            "steps": learned.curve[-1].step,
        },
        learned.curve,
        {f"head {k} top-1": head.top[0] for k, head in enumerate(learned.before)},
        {f"head {k} top-1": head.top[0] for k, head in enumerate(learned.after)},
        learned.after,
    )
