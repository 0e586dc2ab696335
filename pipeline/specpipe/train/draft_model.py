"""Training of a draft model: the target with fewer layers learns the target's distribution."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from specpipe.checkpoint.belonging import TARGET, mark_for
from specpipe.config.run_config import RunConfig
from specpipe.config.training import DraftTraining
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Floats
from specpipe.core.errors import ConfigError
from specpipe.train.categories import Measures, by_category
from specpipe.train.features import pad, rows_where
from specpipe.train.job import DrafterKind, Notify, Progress, TrainingJob, text_facts
from specpipe.train.loop import Group, Part, batch_of, steps_per_epoch, sum_of
from specpipe.train.loss import share_of
from specpipe.train.placement import cuts
from specpipe.train.produce import TrainResult, produce
from specpipe.train.report import TrainingReport
from specpipe.train.target import (
    DTYPES,
    Target,
    last_hidden,
    recompute_activations,
    unspread,
)
from specpipe.train.text import (
    CURVE_DOCUMENTS,
    Document,
    Split,
    documents_a_step,
    next_labels,
)

ROWS = 256  # positions of the hold-out whose logits are in memory together


def kept_layers(options: DraftTraining, total: int) -> tuple[int, ...]:
    """Return which of `total` layers the draft keeps: those asked for, or evenly spread ones.

    The first and the last are always among the latter. Raises ConfigError if they do not exist.
    """
    if options.layers:
        if options.layers[-1] >= total or options.layers[0] < 0:
            raise ConfigError(
                f"'train.draft.layers' is {list(options.layers)}: the target's layers are "
                f"0 to {total - 1}"
            )
        return options.layers
    count = max(1, total // 3) if options.num_layers is None else options.num_layers
    if count > total:
        raise ConfigError(f"'train.draft.num_layers' is {count}: the target has {total} layers")
    return tuple(int(i) for i in np.linspace(0, total - 1, count).round())


_OF_LAYERS = ("layer_types", "no_rope_layers")  # keys of transformers with a value for each layer


def prune(model: Any, layers: Sequence[int]) -> Any:
    """Return a float32 copy of `model` with only these decoder layers, ready to be trained."""
    whole = model.base_model.layers
    model.base_model.layers = nn.ModuleList([whole[i] for i in layers])
    try:  # only what is kept is copied
        small = unspread(copy.deepcopy(model)).float()
    finally:
        model.base_model.layers = whole
    decoder = small.base_model
    for place, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = place  # where the KV cache keeps its rows
    small.config.num_hidden_layers = len(layers)
    for name in _OF_LAYERS:
        if values := getattr(small.config, name, None):
            setattr(small.config, name, [values[i] for i in layers])
    small.requires_grad_(True)
    return small


@dataclass(frozen=True, eq=False)
class DraftTask:
    """Distillation of the frozen target into a smaller model."""

    target: Target
    model: Any
    text: Split
    options: DraftTraining
    seed: int
    micro_batch: int = 0  # positions of a part; 0: no limit
    least_parts: int = 1

    def groups(self) -> list[Group]:
        """Return every weight of the draft."""
        return [Group(tuple(self.model.parameters()))]

    def loss(self, step: int) -> torch.Tensor:
        """Return the mean divergence from the target over the learned positions of a batch."""
        return sum_of(self.parts(step))

    def parts(self, step: int) -> list[Part]:
        """Return the loss of a step in parts, each over some of its documents."""
        size = documents_a_step(self.text.training, self.options.schedule.batch_tokens)
        chosen = batch_of(step, size, len(self.text.training), self.seed)
        documents = [self.text.training[i] for i in chosen]
        pieces = cuts([len(d) for d in documents], self.micro_batch, self.least_parts)
        return [partial(self._part, documents[piece], _learned(documents)) for piece in pieces]

    def _part(self, documents: Sequence[Document], total: int) -> torch.Tensor:
        """Return what some documents add to the mean over `total` learned positions."""
        taught, said = self._logits(*self._hidden(documents))
        return share_of(
            divergence(taught, said, self.options.temperature), _learned(documents), total
        )

    def evaluate(self) -> Mapping[str, float]:
        """Return divergence and agreement on a part of the hold-out."""
        return self.judge(self.text.held_out[:CURVE_DOCUMENTS])[0]

    @torch.no_grad()
    def judge(
        self, documents: Sequence[Document], rows: int = ROWS
    ) -> tuple[Measures, dict[str, Measures]]:
        """Compare with the target on `documents`, over the positions that are learned.

        Returns the measures of all, and of each category. The logits of `rows` positions are in
        memory together.

        `kl` in nats at temperature 1; `top-1`: the share of positions where both have the same
        most likely token; `overlap`: sum of min(p, q), the rate at which lossless sampling accepts.
        """
        sums = np.stack([self._sums(document, rows) for document in documents])
        return by_category([document.category for document in documents], sums, _means)

    def _sums(self, document: Document, rows: int) -> Floats:
        """Return the sums over the learned positions of a document, and their number."""
        hidden, states = self._hidden([document])
        sums = np.zeros(4)
        for begin in range(0, len(hidden), rows):
            part = slice(begin, begin + rows)
            sums[:3] += _agreement(*self._logits(hidden[part], states[part]))
        sums[3] = len(hidden)
        return sums

    def _hidden(self, documents: Sequence[Document]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states of target and draft, [N, D] each, where a label is learned."""
        ids, mask = pad(documents)
        learned = [next_labels(document) >= 0 for document in documents]
        taught, said = self.target.hidden(ids, mask), last_hidden(self.model, ids, mask)
        return rows_where(taught, learned), rows_where(said, learned)

    def _logits(
        self, hidden: torch.Tensor, states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of target and draft, [N, V] each."""
        output = self.target.output
        taught = functional.linear(hidden.to(output.device), output).float().to(states.device)
        return taught, functional.linear(states, self.model.get_output_embeddings().weight)


def _learned(documents: Sequence[Document]) -> int:
    return sum(int((next_labels(document) >= 0).sum()) for document in documents)


def _means(sums: Floats) -> Measures:
    return dict(
        zip(("kl", "top-1", "overlap"), (sums[:3] / max(1.0, sums[3])).tolist(), strict=True)
    )


def _agreement(taught: torch.Tensor, said: torch.Tensor) -> Floats:
    """Return the sums over rows of the divergence, of equal choices, and of the overlap."""
    same = (taught.argmax(-1) == said.argmax(-1)).float().sum()
    overlap = torch.minimum(taught.softmax(-1), said.softmax(-1)).sum()
    return np.array(
        [float(divergence(taught, said, 1.0)) * len(taught), float(same), float(overlap)]
    )


def divergence(taught: torch.Tensor, said: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(target || draft) in nats, both softened by T (Hinton et al. 2015).

    The mean over rows; shapes [N, V].
    """
    if not len(taught):
        return said.sum() * 0.0
    wanted = functional.log_softmax(taught / temperature, -1)
    given = functional.log_softmax(said / temperature, -1)
    kl = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
    return kl * temperature**2


def draft_kind(config: RunConfig) -> DrafterKind:
    """Return what `train draft` makes for a run."""
    return DrafterKind("draft", config.train.draft, _draft)


def train_draft(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
    measure: bool = False,
) -> TrainResult:
    """Make a draft as `train.draft` specifies: the target with fewer layers, distilled.

    Writes a Hugging Face checkpoint with the target's tokenizer, and a report; an up-to-date
    product is kept. Raises ConfigError for text or layers that cannot be used.
    """
    made = draft_kind(config)
    return produce(made, config, workspace, notify=notify, progress=progress, measure=measure)


def _draft(job: TrainingJob, out: Path) -> TrainingReport:
    options, text = job.config.train.draft, job.text
    layers = kept_layers(options, int(job.target.model.config.num_hidden_layers))
    job.notify(f"draft: layers {', '.join(map(str, layers))} of the target")
    train = job.config.train
    model = prune(job.target.model, layers).to(job.placement.device)
    if train.gradient_checkpointing:
        recompute_activations(model)
    task = DraftTask(
        job.target, model, text, options, train.seed, train.micro_batch, job.placement.world
    )
    before, _ = task.judge(text.held_out)
    size = documents_a_step(text.training, options.schedule.batch_tokens)
    curve = job.train(task, options.schedule, steps_per_epoch(size, len(text.training)))
    after, categories = task.judge(text.held_out)
    setattr(model.config, TARGET, mark_for(job.target.path).fingerprint)
    model.to(DTYPES[job.target.dtype]).save_pretrained(out)
    job.target.tokenizer.save_pretrained(out)
    return TrainingReport(
        f"Draft for {job.config.name}",
        {
            **text_facts(job),
            "layers": ", ".join(map(str, layers)),
            "temperature": options.temperature,
            **asdict(options.schedule),
            "steps": curve[-1].step,
        },
        curve,
        before,
        after,
        categories=categories,
    )
