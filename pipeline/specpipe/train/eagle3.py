"""Training of an EAGLE-3 drafter, in the layout of speculators (Li et al. 2025, 2503.01840).

The net is in `layer_net`, the loss in `layer_task`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpipe.checkpoint.belonging import mark_for, save_marked
from specpipe.checkpoint.eagle3_format import (
    NewEagle3,
    speculators_config,
    usual_layers,
    write_config,
)
from specpipe.config.run_config import RunConfig
from specpipe.config.training import Eagle3Training
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.train.job import DrafterKind, Notify, Progress, TrainingJob, text_facts
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.layer_states import (
    LayerSource,
    LayerStates,
    StreamedLayerStates,
    read_layer_states,
)
from specpipe.train.layer_task import Eagle3Task
from specpipe.train.loop import steps_per_epoch
from specpipe.train.loss import by_frequency
from specpipe.train.produce import TrainResult, produce
from specpipe.train.report import TrainingReport
from specpipe.train.target import DTYPES, Target, weights_of
from specpipe.train.text import Document, documents_a_step

RECIPE = "1"  # raise it when the same options must give another drafter
_NEEDED = ("hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")


def eagle3_kind(config: RunConfig) -> DrafterKind:
    """Return what `train eagle3` makes for a run."""
    return DrafterKind("eagle3", config.train.eagle3, _eagle3, recipe=RECIPE)


def train_eagle3(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
    measure: bool = False,
) -> TrainResult:
    """Train an EAGLE-3 drafter as `train.eagle3` specifies; an up-to-date product stays.

    Writes `model.safetensors` and `config.json` in the layout of speculators, and a report. Raises
    ConfigError for text or layers that cannot be used, Unsupported for a target whose layers are
    not like Llama's.
    """
    made = eagle3_kind(config)
    return produce(made, config, workspace, notify=notify, progress=progress, measure=measure)


def _eagle3(job: TrainingJob, out: Path) -> TrainingReport:
    options, target, seed = job.config.train.eagle3, job.target, job.config.train.seed
    device = job.placement.device
    layers = chosen_layers(options, int(target.model.config.num_hidden_layers))
    ids = torch.from_numpy(draft_vocabulary(job.text.training, target, options.draft_vocab_size))
    config = drafter_config(options, target, str(target.path), layers, len(ids))
    training, held_out = _states(job, layers)
    output = target.output[ids.to(target.output.device)].to(device)
    net = Eagle3Net(config, target.embedding, output, _final_norm(target), seed).to(device)
    task = Eagle3Task(net, output, ids.to(device), training, held_out, options, seed)
    before, _ = task.judge()
    size = documents_a_step(job.text.training, options.schedule.batch_tokens)
    curve = job.train(task, options.schedule, steps_per_epoch(size, len(job.text.training)))
    write_drafter(net, config, ids, target, out)
    after, categories = task.judge()
    return TrainingReport(
        f"EAGLE-3 drafter for {job.config.name}",
        {
            **text_facts(job),
            **{k: v for k, v in asdict(options).items() if k != "schedule"},
            "target_layer_ids": ", ".join(map(str, layers)),
            "share of tokens in the draft vocabulary": covered(job.text.held_out, ids),
            **asdict(options.schedule),
            "steps": curve[-1].step,
        },
        curve,
        before,
        after,
        categories=categories,
    )


def chosen_layers(options: Eagle3Training, count: int) -> tuple[int, ...]:
    """Return the layers whose inputs are read; raises ConfigError if the target lacks one."""
    found = tuple(sorted(set(options.target_layer_ids))) or usual_layers(count)
    if found[-1] >= count or found[0] < 0:
        raise ConfigError(
            f"'train.eagle3.target_layer_ids' is {list(options.target_layer_ids)}: the target's "
            f"layers are 0 to {count - 1}"
        )
    return found


def draft_vocabulary(documents: Sequence[Document], target: Target, most: int) -> Ints:
    """Return the target's most frequent tokens in the learned text, at most `most`, ascending.

    Unused ids fill it up, the smallest first.
    """
    total = int(target.output.shape[0])
    learned = np.concatenate([d.tokens[d.learned] for d in documents])
    return np.sort(by_frequency(learned, total)[:most])


def covered(documents: Sequence[Document], ids: torch.Tensor) -> float:
    """Return the share of the learned tokens of `documents` that can be drafted."""
    tokens = np.concatenate([d.tokens[d.learned] for d in documents])
    return round(float(np.isin(tokens, ids.numpy()).mean()), 4)


def drafter_config(
    options: Eagle3Training, target: Target, name: str, layers: Sequence[int], tokens: int
) -> dict[str, Any]:
    """Return config.json; raises Unsupported for a target whose sizes a Llama layer cannot have."""
    known: dict[str, Any] = target.model.config.to_dict()
    missing = [key for key in _NEEDED if known.get(key) is None]
    if missing:
        raise Unsupported(
            f"{name} has no {missing[0]} in config.json: an EAGLE-3 drafter is a Llama layer of "
            "the sizes of its target",
            hint="train a ReDrafter or Medusa heads for this target",
        )
    new = NewEagle3(
        tokens, tuple(layers), options.ttt_steps, target.dtype, options.norm_before_residual
    )
    return speculators_config(new, known, name)


def write_drafter(
    net: Eagle3Net, config: Mapping[str, Any], ids: torch.Tensor, target: Target, folder: Path
) -> None:
    """Write `model.safetensors` in the target's type, with maps unless every token is drafted."""
    kind, total = DTYPES[target.dtype], len(target.output)
    tensors = {n: p.detach().cpu().to(kind).contiguous() for n, p in net.named_parameters()}
    if len(ids) < total:
        tensors["d2t"] = ids - torch.arange(len(ids))
        tensors["t2d"] = torch.zeros(total, dtype=torch.bool).index_fill(0, ids, True)
    save_marked(tensors, folder / "model.safetensors", mark_for(target.path))
    write_config(config, folder)


def _states(job: TrainingJob, layers: Sequence[int]) -> tuple[LayerSource, LayerStates]:
    """Return the states of the training, and those of the hold-out, which are on the disk."""
    job.notify("computing the hidden states of the target that are not cached")
    if job.config.train.hidden_states == "on_the_fly":
        streamed = StreamedLayerStates(job.target, tuple(job.text.training), layers)
        return streamed, _stored(job, job.text.held_out, layers)
    return _stored(job, job.text.training, layers), _stored(job, job.text.held_out, layers)


def _stored(job: TrainingJob, documents: Sequence[Document], layers: Sequence[int]) -> LayerStates:
    return read_layer_states(
        job.target, documents, layers, job.work, progress=job.progress, placement=job.placement
    )


def _final_norm(target: Target) -> torch.Tensor | None:
    """Return the weights of the target's last norm, if it is like the drafter's."""
    norm = getattr(target.model.base_model, "norm", None)
    is_like = isinstance(getattr(norm, "weight", None), torch.Tensor) and not hasattr(norm, "bias")
    return weights_of(norm) if is_like else None
