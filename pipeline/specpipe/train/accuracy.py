"""Measures how often heads are right on the hold-out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn import functional

from specpipe.core.contracts import Floats, Ints
from specpipe.core.trees import WIDTH
from specpipe.train.categories import Measures, acceptance, members
from specpipe.train.text import Bools

NEVER = np.iinfo(np.int64).max
CHUNK = 512  # positions whose logits are in memory together


@dataclass(frozen=True)
class HeadAccuracy:
    """One head on the hold-out."""

    positions: int  # that have a label for this head
    top: tuple[float, ...]  # [10]  share of labels among the first 1, 2, ... guesses


@dataclass(frozen=True)
class DrafterCalibration:
    """P(guess i of head k is right | every shallower head had the right token in its first 10).

    Conditional, since a node of a tree matters only once its parents were accepted; over all
    parents of a depth together, since a hold-out is too small for one table a path.
    """

    conditional: tuple[tuple[float, ...], ...]  # [heads][10]
    samples: tuple[int, ...]  # [heads]  positions where the condition held
    accuracy: tuple[tuple[float, ...], ...]  # [heads][10]  the same without a condition
    positions: tuple[int, ...]  # [heads]

    def to_json(self) -> dict[str, object]:
        """Return the content of calibration.json."""
        rule = "every shallower head had the right token among its first 10 choices"
        return {"width": WIDTH, "condition": rule, **asdict(self)}


@torch.no_grad()
def label_ranks(features: torch.Tensor, output: torch.Tensor, labels: torch.Tensor) -> Ints:
    """Return the place of each label among the guesses, from 0; NEVER where there is no label.

    Shapes: features [N, D], output [V, D], labels [N] with -1 for nothing. In float32: bfloat16
    would make ties of close guesses, and a tie with the label counts as a hit.
    """
    rows = output.float()
    ranks = np.full(len(labels), NEVER, np.int64)
    for begin in range(0, len(labels), CHUNK):
        part = slice(begin, begin + CHUNK)
        wanted = labels[part].to(rows.device)
        logits = functional.linear(features[part].float().to(rows.device), rows)
        own = logits.gather(1, wanted.clamp(min=0)[:, None])
        above = (logits > own).sum(1)
        ranks[part] = torch.where(wanted >= 0, above, NEVER).cpu().numpy()
    return ranks


def measure(ranks: Sequence[Ints], labelled: Sequence[Bools]) -> list[HeadAccuracy]:
    """Return the accuracy of each head from its ranks [N] and where it has labels [N]."""
    measured = []
    for place, has_label in zip(ranks, labelled, strict=True):
        count = int(has_label.sum())
        hits = [int((place[has_label] < k).sum()) for k in range(1, WIDTH + 1)]
        measured.append(HeadAccuracy(count, tuple(h / max(1, count) for h in hits)))
    return measured


def calibrate(ranks: Sequence[Ints], labelled: Sequence[Bools]) -> DrafterCalibration:
    """Count, for every head, how often each guess was right once the shallower heads were."""
    reached = np.ones(len(ranks[0]), bool)
    conditional, samples, accuracy = [], [], []
    for place, has_label in zip(ranks, labelled, strict=True):
        reached &= has_label
        conditional.append(_shares(place[reached]))
        samples.append(int(reached.sum()))
        accuracy.append(_shares(place[has_label]))
        reached = reached & (place < WIDTH)
    positions = tuple(int(has_label.sum()) for has_label in labelled)
    return DrafterCalibration(tuple(conditional), tuple(samples), tuple(accuracy), positions)


@dataclass(frozen=True)
class Judgement:
    """How good the draft tokens of heads or of a ReDrafter are on a hold-out."""

    heads: tuple[HeadAccuracy, ...]
    calibration: DrafterCalibration
    measures: Measures  # top-1 of every draft token; acceptance by depth and length of chains
    categories: Mapping[str, Measures]  # the same for each category of the documents


def judgement(
    ranks: Sequence[Ints], labelled: Sequence[Bools], categories: Sequence[str]
) -> Judgement:
    """Judge draft tokens by their ranks [N] and where they have labels [N].

    `categories`: that of the document of every position, or nothing.
    """
    named = dict[str, Measures]()
    for name, rows in members(categories).items():
        own = [r[rows] for r in ranks], [has[rows] for has in labelled]
        named[name] = _measures(measure(*own), *own)
    heads = tuple(measure(ranks, labelled))
    return Judgement(heads, calibrate(ranks, labelled), _measures(heads, ranks, labelled), named)


def _measures(
    heads: Sequence[HeadAccuracy], ranks: Sequence[Ints], labelled: Sequence[Bools]
) -> dict[str, float]:
    top = {f"head {k} top-1": head.top[0] for k, head in enumerate(heads)}
    right = np.cumprod([(r == 0) & has for r, has in zip(ranks, labelled, strict=True)], axis=0)
    return top | acceptance(right.sum(1), np.sum(labelled, axis=1))


def _shares(places: Ints) -> tuple[float, ...]:
    counts: Floats = np.array([(places == i).sum() for i in range(WIDTH)], np.float64)
    return tuple(float(c) for c in counts / max(1, len(places)))
