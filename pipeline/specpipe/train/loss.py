"""The loss: cross entropy over frequent tokens and a sample of the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from specpipe.core.contracts import Ints

NOTHING = -1


@dataclass(frozen=True, eq=False)
class Candidates:
    """The tokens whose logits a step computes, and what is added to each logit."""

    tokens: torch.Tensor | None  # [C]; None: the whole vocabulary, in order
    bias: torch.Tensor | None  # [C]  log of how many tokens a drawn one stands for
    labels: torch.Tensor  # [N, heads]  as indices into `tokens`; -1: nothing
    counts: tuple[int, ...]  # [heads]  how many labels there are

    def part(self, rows: slice) -> "Candidates":
        """Return the candidates for some of the positions."""
        labels = self.labels[rows]
        return Candidates(self.tokens, self.bias, labels, _counts(labels))

    def on(self, device: torch.device) -> "Candidates":
        """Return the candidates on a device."""
        return Candidates(
            None if self.tokens is None else self.tokens.to(device),
            None if self.bias is None else self.bias.to(device),
            self.labels.to(device),
            self.counts,
        )


def every_token(labels: torch.Tensor) -> Candidates:
    """Return the whole vocabulary as candidates for labels [N, heads]."""
    return Candidates(None, None, labels, _counts(labels))


def _counts(labels: torch.Tensor) -> tuple[int, ...]:
    return tuple((labels >= 0).sum(0).tolist())


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """How candidates are chosen.

    The `frequent` tokens and the labels of the batch always take part. Of the rest, `samples` are
    drawn a step, and each stands for rest / samples tokens: an unbiased estimate of the softmax's
    denominator (Bengio and Senecal 2008, importance sampling, with a uniform proposal). With no
    frequent tokens, every token takes part and the loss is exact.
    """

    size: int
    frequent: Ints  # ids; empty: no reduction
    samples: int

    def candidates(self, labels: torch.Tensor, rng: np.random.Generator) -> Candidates:
        """Choose the candidates for the labels [N, heads] of one step, on the CPU."""
        if not len(self.frequent):
            return every_token(labels)
        known = np.union1d(self.frequent, labels[labels >= 0].numpy())
        rest = np.setdiff1d(np.arange(self.size), known, assume_unique=True)
        drawn = np.sort(rng.choice(rest, min(self.samples, len(rest)), replace=False))
        bias = np.zeros(len(known) + len(drawn), np.float32)
        bias[len(known) :] = np.log(len(rest) / max(1, len(drawn)))
        index = np.full(self.size, NOTHING, np.int64)
        index[known] = np.arange(len(known))
        moved = torch.where(labels >= 0, torch.from_numpy(index)[labels.clamp(min=0)], NOTHING)
        tokens = torch.from_numpy(np.concatenate([known, drawn]))
        return Candidates(tokens, torch.from_numpy(bias), moved, _counts(moved))


def frequent_tokens(labels: Ints, most: int) -> Ints:
    """Return the ids of the most frequent labels, at most `most`, rising; -1 does not count."""
    known = labels[labels >= 0]
    ranked = by_frequency(known, int(known.max(initial=-1)) + 1)
    return np.sort(ranked[: min(most, len(np.unique(known)))])


def by_frequency(labels: Ints, size: int) -> Ints:
    """Return the ids of a vocabulary of `size`, the most frequent labels first; -1 does not count.

    Equally frequent ones are in the order of their ids.
    """
    return np.argsort(-np.bincount(labels[labels >= 0], minlength=size), kind="stable")


@dataclass(frozen=True, eq=False)
class Lesson:
    """The distributions that one head is to learn: a target's at the places of its labels."""

    hidden: torch.Tensor  # [N, D]  the target's hidden states there
    output: torch.Tensor  # [V, D]  its LM head
    known: torch.Tensor  # [N]  bool; where it is not, only the label is learned


def cross_entropy(
    features: torch.Tensor,
    output: torch.Tensor,
    chosen: Candidates,
    head: int,
    lesson: Lesson | None = None,
) -> torch.Tensor:
    """Return the mean loss of one head, in nats a label: features [N, D], output [V, D].

    0 if no position has a label for this head.
    """
    labels = chosen.labels[:, head]
    if not chosen.counts[head]:
        return features.sum() * 0.0
    logits = _logits(features, output, chosen)
    if lesson is None:
        return functional.cross_entropy(logits, labels, ignore_index=NOTHING)
    wanted = torch.softmax(_logits(lesson.hidden, lesson.output, chosen), -1)
    soft = -(wanted * torch.log_softmax(logits, -1)).sum(-1)
    hard = functional.cross_entropy(logits, labels, ignore_index=NOTHING, reduction="none")
    return torch.where(lesson.known, soft, hard)[labels >= 0].mean()


def _logits(features: torch.Tensor, output: torch.Tensor, chosen: Candidates) -> torch.Tensor:
    """Return the logits of the candidates, [N, C]."""
    rows = output if chosen.tokens is None else output[chosen.tokens]
    logits = functional.linear(features.to(rows.dtype), rows).float()
    return logits if chosen.bias is None else logits + chosen.bias


def share_of(mean: torch.Tensor, count: int, total: int) -> torch.Tensor:
    """Return what a part of a batch adds to the mean over `total` from its own over `count`."""
    return mean if count == total else mean * (count / max(1, total))


def weighted_sum(losses: Sequence[torch.Tensor], decay: float) -> torch.Tensor:
    """Return sum over heads k of decay^k times the head's loss (paper, equation 1)."""
    total = losses[0]
    for k, loss in enumerate(losses[1:], 1):
        total = total + decay**k * loss
    return total
