"""Medusa-2: backbone and heads learn together (paper, section 2.2.2); this changes the backbone."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from specpipe.config.training import MedusaTraining
from specpipe.core.contracts import Ints
from specpipe.train.accuracy import (
    Judgement,
    judgement,
    label_ranks,
    measure,
)
from specpipe.train.features import pad, rows_where
from specpipe.train.frozen import DrafterNet, drafter_loss
from specpipe.train.loop import Group, Part, batch_of, sum_of
from specpipe.train.lora import add_lora
from specpipe.train.loss import Candidates, Vocabulary, cross_entropy, every_token
from specpipe.train.placement import cuts
from specpipe.train.target import Target, last_hidden, unspread
from specpipe.train.text import (
    CURVE_DOCUMENTS,
    Bools,
    Document,
    Split,
    documents_a_step,
    spoken_after,
)


@dataclass(frozen=True, eq=False)
class JointTask:
    """Training of a backbone in float32 together with its heads."""

    model: Any
    heads: DrafterNet
    backbone_weights: tuple[nn.Parameter, ...]
    text: Split
    vocabulary: Vocabulary
    options: MedusaTraining
    seed: int
    steps: int
    micro_batch: int = 0  # positions of a part; 0: no limit
    least_parts: int = 1

    @property
    def output(self) -> torch.Tensor:
        """The backbone's LM head as it is now: [V, D]."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    def groups(self) -> list[Group]:
        """Return the backbone's weights, and the heads' at their own rate."""
        heads = Group(tuple(self.heads.parameters()), self.options.head_lr_ratio)
        return [Group(self.backbone_weights), heads]

    def loss(self, step: int) -> torch.Tensor:
        """Return L_LM + weight(step) * L_heads on whole documents (paper, equation 2)."""
        return sum_of(self.parts(step))

    def parts(self, step: int) -> list[Part]:
        """Return the loss of a step in parts, each over some of its documents."""
        size = documents_a_step(self.text.training, self.options.schedule.batch_tokens)
        chosen = batch_of(step, size, len(self.text.training), self.seed)
        documents = [self.text.training[i] for i in chosen]
        spoken = self._spoken(documents)
        rng = np.random.default_rng([self.seed, 1, step])
        guesses = self.vocabulary.candidates(spoken[:, 1:], rng)
        sizes = [len(document) for document in documents]
        begins = np.cumsum([0, *sizes])
        words, weight = every_token(spoken), heads_weight(self.options, step, self.steps)
        found: list[Part] = []
        for piece in cuts(sizes, self.micro_batch, self.least_parts):
            rows = slice(int(begins[piece.start]), int(begins[piece.stop]))
            said = words.part(rows)
            share = said.counts[0] / max(1, words.counts[0])
            drafts = partial(self._drafts, guesses.part(rows), guesses.counts, weight)
            found.append(partial(self._part, documents[piece], said, share, drafts))
        return found

    def _part(
        self,
        documents: Sequence[Document],
        said: Candidates,
        share: float,
        drafts: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """Return what some documents add to the loss of a batch."""
        hidden, spoken = self._view(documents)
        own = cross_entropy(hidden, self.output, said.on(hidden.device), 0)
        return own * share + drafts(hidden, spoken)

    def _drafts(
        self,
        guesses: Candidates,
        totals: Sequence[int],
        weight: float,
        hidden: torch.Tensor,
        spoken: torch.Tensor,
    ) -> torch.Tensor:
        return weight * drafter_loss(
            self.heads, hidden, spoken, self.output, guesses.on(hidden.device),
            self.options, totals=totals,
        )  # fmt: skip

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Return top-1 of the LM head and of every head on a part of the hold-out."""
        found = self.ranks(self.text.held_out[:CURVE_DOCUMENTS])
        accuracies = measure(*found)
        names = ["LM head", *(f"head {k}" for k in range(len(accuracies) - 1))]
        return {f"{n} top-1": a.top[0] for n, a in zip(names, accuracies, strict=True)}

    def judge(self) -> Judgement:
        """Judge every head on the whole hold-out."""
        ranks, labelled = self.ranks(self.text.held_out)
        categories = [d.category for d in self.text.held_out for _ in range(len(d))]
        return judgement(ranks[1:], labelled[1:], categories)

    @torch.no_grad()
    def ranks(self, documents: Sequence[Document]) -> tuple[list[Ints], list[Bools]]:
        """Return ranks and label marks, the LM head's first, over all positions of `documents`."""
        rows: list[list[Ints]] = []
        marks: list[Bools] = []
        for document in documents:
            hidden, wanted = self._view([document])
            layers = [self.output] + [
                self.heads.output(k, self.output) for k in range(self.options.num_heads)
            ]
            features = [hidden, *self.heads.features(hidden, wanted)]
            rows.append(
                [
                    label_ranks(f, layer, wanted[:, k])
                    for k, (f, layer) in enumerate(zip(features, layers, strict=True))
                ]
            )
            marks.append(wanted.cpu().numpy() >= 0)
        labelled = np.concatenate(marks)
        ranks = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return ranks, [labelled[:, k] for k in range(labelled.shape[1])]

    def _view(self, documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden [N, D] and the tokens spoken after [N, 1 + heads], padding left out."""
        ids, mask = pad(documents)
        states = last_hidden(self.model, ids, mask)
        hidden = rows_where(states, [np.ones(len(d), bool) for d in documents])
        return hidden, self._spoken(documents).to(hidden.device)

    def _spoken(self, documents: Sequence[Document]) -> torch.Tensor:
        return torch.from_numpy(
            np.concatenate([spoken_after(d, self.options.num_heads) for d in documents])
        )


def heads_weight(options: MedusaTraining, step: int, steps: int) -> float:
    """Return the weight of the heads' loss: a quarter sine up to `heads_loss_weight`.

    Heads that know nothing yet would pull the backbone away (paper, section 2.2.2).
    """
    return options.heads_loss_weight * math.sin(math.pi / 2 * min(1.0, (step + 1) / steps))


def trainable_copy(target: Target, lora_rank: int, seed: int) -> tuple[Any, tuple[Any, ...]]:
    """Return a float32 copy of the target's model, and the weights of it that will change."""
    model = unspread(copy.deepcopy(target.model)).float()
    if lora_rank:
        return model, add_lora(model, lora_rank, seed)
    model.requires_grad_(True)
    return model, tuple(model.parameters())
