"""Training of an EAGLE-3 drafter on the hidden states of a frozen target, and its acceptance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from specpipe.config.training import Eagle3Training
from specpipe.core.contracts import Ints
from specpipe.train.categories import Measures, acceptance, by_category
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import LayerSource, LayerStates, TaughtDocument
from specpipe.train.loop import Group, Part, batch_of, sum_of
from specpipe.train.text import CURVE_DOCUMENTS, documents_a_step, head_labels


@dataclass(frozen=True, eq=False)
class Eagle3Task:
    """Distillation of the target into the drafter, over `ttt_steps` draft steps.

    Everything is computed on the device of `output`, where `net` and `ids` are, too.
    """

    net: Eagle3Net
    output: torch.Tensor  # [V, D]  the target's output rows of the draft vocabulary
    ids: torch.Tensor  # [V]  the target's id of every draft token
    training: LayerSource
    held_out: LayerStates
    options: Eagle3Training
    seed: int

    def groups(self) -> list[Group]:
        """Return the drafter's weights, the output layer included."""
        return [Group(tuple(self.net.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the mean loss over the learned positions of a batch of documents."""
        return sum_of(self.parts(step))

    def parts(self, step: int) -> list[Part]:
        """Return the loss of a step in parts, one for every document."""
        documents = self.training.documents
        size = documents_a_step(documents, self.options.schedule.batch_tokens)
        chosen = batch_of(step, size, len(documents), self.seed).tolist()
        labels = [head_labels(documents[n], self.options.ttt_steps) for n in chosen]
        counts = np.sum([(own >= 0).sum(0) for own in labels], 0)
        return [partial(self._part, number, counts) for number in chosen]

    def _part(self, number: int, counts: Ints) -> torch.Tensor:
        """Return what a document adds to the sum over steps s of decay^s times the mean loss."""
        document = self.training.document(number, self.options.ttt_steps, self.output.device)
        total = torch.zeros((), device=self.output.device)
        for step, logits in enumerate(self.net.steps(document, self.options.ttt_steps)):
            rows = torch.nonzero(document.labels[: len(logits), step] >= 0)[:, 0]
            taught = functional.linear(document.last[rows + 1 + step], self.output.float())
            share = self.options.ttt_step_loss_decay**step / max(1, int(counts[step]))
            total = total + share * draft_loss(logits[rows], taught, self.options.loss_fn)
        return total

    def evaluate(self) -> Mapping[str, float]:
        """Return the acceptance by depth on a part of the hold-out."""
        numbers = range(min(CURVE_DOCUMENTS, len(self.held_out.documents)))
        return acceptance(*self._counts(numbers).sum(0))

    def judge(self) -> tuple[Measures, dict[str, Measures]]:
        """Return the acceptance by depth on the whole hold-out, and for each of its categories."""
        documents = self.held_out.documents
        counts = self._counts(range(len(documents)))
        return by_category([d.category for d in documents], counts, lambda sums: acceptance(*sums))

    @torch.no_grad()
    def _counts(self, numbers: Sequence[int]) -> Ints:
        """Return [documents, 2, steps]: how often the first draft tokens are right.

        The positions where they are, and those with a text that long.
        """
        steps, device = self.options.ttt_steps, self.output.device
        return np.stack([self._hits(self.held_out.document(n, steps, device)) for n in numbers])

    def _hits(self, document: TaughtDocument) -> Ints:
        """Return [2, steps]: positions where all tokens up to a depth are right, and all."""
        counts = np.zeros((2, self.options.ttt_steps), np.int64)
        right = torch.ones_like(document.tokens, dtype=torch.bool)
        for step, logits in enumerate(self.net.steps(document, self.options.ttt_steps)):
            labels = document.labels[: len(logits), step]
            right = right[: len(logits)] & (self.ids[logits.argmax(-1)] == labels)
            counts[:, step] = int(right.sum()), int((labels >= 0).sum())
        return counts


def draft_loss(logits: torch.Tensor, taught: torch.Tensor, kind: str) -> torch.Tensor:
    """Return the summed loss of rows [N, V] against the target's logits [N, V], in nats.

    `kl_div`: the divergence from the target's distribution over the draft vocabulary. `ce`: the
    cross entropy of the target's likeliest token of that vocabulary.
    """
    if kind == "ce":
        return functional.cross_entropy(logits, taught.argmax(-1), reduction="sum")
    given, wanted = logits.log_softmax(-1), taught.log_softmax(-1)
    return functional.kl_div(given, wanted, reduction="sum", log_target=True)
