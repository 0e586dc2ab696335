"""Training of Medusa heads or a ReDrafter on the cached hidden states of a frozen target.

The nets are in `medusa` and `redrafter`. Training that changes the target is in `joint`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
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
    Judgement,
    judgement,
    label_ranks,
    measure,
)
from specpipe.train.features import Features, positions_of, read_features
from specpipe.train.job import TrainingJob, text_facts
from specpipe.train.loop import Group, Part, Point, sum_of
from specpipe.train.loss import (
    Candidates,
    Lesson,
    Vocabulary,
    by_frequency,
    cross_entropy,
    frequent_tokens,
    share_of,
    weighted_sum,
)
from specpipe.train.placement import cuts
from specpipe.train.report import TrainingReport
from specpipe.train.sources import FeatureSource, StoredFeatures, StreamedFeatures
from specpipe.train.text import CURVE_POSITIONS, Bools, Document

ROWS = 4096  # positions of the hold-out whose features are in memory together


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
    """Training of a drafter on the hidden states of a frozen target."""

    net: DrafterNet
    output: torch.Tensor  # [V, D]  the backbone's LM head
    training: FeatureSource
    held_out: Features
    vocabulary: Vocabulary
    options: DrafterTraining
    seed: int
    micro_batch: int = 0  # positions of a part; 0: no limit
    least_parts: int = 1

    def groups(self) -> list[Group]:
        """Return the drafter's weights."""
        return [Group(tuple(self.net.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the weighted loss of all draft tokens at `batch_tokens` positions."""
        return sum_of(self.parts(step))

    def parts(self, step: int) -> list[Part]:
        """Return the loss of a step in parts, each over some of its positions."""
        features, rows = self.training.batch(step)
        spoken = torch.from_numpy(features.spoken[rows])
        chosen = self.vocabulary.candidates(
            spoken[:, 1:], np.random.default_rng([self.seed, 1, step])
        )
        pieces = cuts([1] * len(rows), self.micro_batch, self.least_parts)
        return [
            partial(
                self._part, features, rows[piece], spoken[piece], chosen.part(piece), chosen.counts
            )
            for piece in pieces
        ]

    def _part(
        self,
        features: Features,
        rows: Ints,
        spoken: torch.Tensor,
        chosen: Candidates,
        totals: Sequence[int],
    ) -> torch.Tensor:
        device = self.output.device
        hidden = torch.from_numpy(features.hidden[rows]).float().to(device)
        lessons = self._lessons(features, rows) if self.options.soft_labels else []
        return drafter_loss(
            self.net, hidden, spoken.to(device), self.output, chosen.on(device),
            self.options, lessons, totals,
        )  # fmt: skip

    def _lessons(self, features: Features, rows: Ints) -> list[Lesson]:
        """Return the target's state at the place of each draft token of `rows`, as far as known."""
        device = self.output.device
        places = [features.ahead(rows, k) for k in range(features.spoken.shape[1] - 1)]
        return [
            Lesson(
                torch.from_numpy(features.hidden[np.maximum(at, 0)]).to(device),
                self.output,
                torch.from_numpy(at >= 0).to(device),
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
    chosen: Candidates,
    options: DrafterTraining,
    lessons: Sequence[Lesson] = (),
    totals: Sequence[int] = (),
) -> torch.Tensor:
    """Return the sum of decay^k times the cross entropy of draft token k (see `DrafterNet`).

    `lessons`, one per draft token, are the distributions to learn; without them, the tokens.
    `totals`, if the positions are a part of a batch, are the labels that each draft token has in
    the batch: the losses of the parts then add up to that of the batch.
    """
    losses = [
        share_of(
            cross_entropy(f, net.output(k, output), chosen, k, lessons[k] if lessons else None),
            chosen.counts[k],
            totals[k] if totals else chosen.counts[k],
        )
        for k, f in enumerate(net.features(hidden, spoken))
    ]
    return weighted_sum(losses, options.head_loss_decay)


def judge(
    net: DrafterNet, output: torch.Tensor, held_out: Features, categories: Sequence[str] = ()
) -> Judgement:
    """Judge every draft token on the whole hold-out; `categories`: one per position, or none."""
    return judgement(*_ranks(net, output, held_out), categories)


@torch.no_grad()
def _ranks(net: DrafterNet, output: torch.Tensor, part: Features) -> tuple[list[Ints], list[Bools]]:
    """Return ranks and label marks, draft tokens x [N] each; block by block."""
    blocks: list[list[Ints]] = []
    for begin in range(0, len(part), ROWS):
        spoken = torch.from_numpy(part.spoken[begin : begin + ROWS])
        hidden = torch.from_numpy(np.array(part.hidden[begin : begin + ROWS])).float()
        features = net.features(hidden.to(output.device), spoken.to(output.device))
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
    before: Judgement
    after: Judgement
    token_map: Ints  # [V]  the tokens, those that are most frequent in the training first


def learn(job: TrainingJob, net: DrafterNet, options: DrafterTraining, draft_len: int) -> Learned:
    """Train `net`, which drafts `draft_len` tokens, on the frozen target's hidden states."""
    output, train = job.target.output.to(job.placement.device), job.config.train
    labels = positions_of(job.text.training, draft_len).labels()
    training, held_out = _features(job, options, draft_len)
    categories = _categories(job.text.held_out, draft_len)
    before = judge(net, output, held_out, categories)
    tokens = vocabulary(job, labels[:, 1:], options)
    task = FrozenTask(
        net, output, training, held_out, tokens, options, train.seed, train.micro_batch,
        job.placement.world,
    )  # fmt: skip
    curve = job.train(task, options.schedule, training.steps)
    ranked = by_frequency(labels[:, 1:], len(output))
    return Learned(curve, before, judge(net, output, held_out, categories), ranked)


def _categories(documents: Sequence[Document], draft_len: int) -> list[str]:
    """Return the category of every position of the features of `documents`."""
    kept = positions_of(documents, draft_len).kept
    return [d.category for d, rows in zip(documents, kept, strict=True) for _ in range(rows.sum())]


def _features(
    job: TrainingJob, options: DrafterTraining, draft_len: int
) -> tuple[FeatureSource, Features]:
    """Return the batches of the training, and the features of the hold-out, which are on disk."""
    size, seed = options.schedule.batch_tokens, job.config.train.seed
    job.notify("computing the hidden states of the target that are not cached")
    if job.config.train.hidden_states == "on_the_fly":
        documents = job.text.training
        streamed = StreamedFeatures(job.target, documents, draft_len, size, seed)
        return streamed, _stored(job, job.text.held_out, draft_len)
    training = _stored(job, job.text.training, draft_len)
    return StoredFeatures(training, size, seed), _stored(job, job.text.held_out, draft_len)


def _stored(job: TrainingJob, documents: Sequence[Document], draft_len: int) -> Features:
    return read_features(
        job.target,
        documents,
        draft_len,
        job.work,
        progress=job.progress,
        placement=job.placement,
    )


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
        learned.before.measures,
        learned.after.measures,
        learned.after.heads,
        learned.after.categories,
    )
