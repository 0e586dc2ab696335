"""Medusa heads: residual blocks on the target's last hidden state, in FasterDecoding's layout.

Head k is `output(x + SiLU(W x + b))`, with as many residual blocks as it has layers (Cai et al.
2024, arXiv 2401.10774, section 2.1.1). W and b begin at zero, so every head begins as the LM head.
`train_medusa` trains them on a frozen target (medusa1) or together with it (medusa2, see `joint`).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from specpipe.checkpoint.belonging import Mark, mark_for, save_marked
from specpipe.checkpoint.medusa import WEIGHTS
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace, write_text
from specpipe.core.contracts import Ints
from specpipe.core.drafters import TOKEN_MAP
from specpipe.train.frozen import Learned, learn, report, vocabulary, write_calibration
from specpipe.train.job import DrafterKind, Notify, Progress, TrainingJob
from specpipe.train.joint import JointTask, trainable_copy
from specpipe.train.loop import steps_per_epoch
from specpipe.train.lora import merge_lora
from specpipe.train.loss import by_frequency
from specpipe.train.produce import TrainResult, produce
from specpipe.train.report import TrainingReport
from specpipe.train.target import DTYPES, recompute_activations
from specpipe.train.text import documents_a_step, head_labels

BACKBONE = "backbone"


@dataclass(frozen=True)
class HeadsConfig:
    """config.json next to the weights; the names are FasterDecoding's, the last ones are ours."""

    medusa_num_heads: int
    medusa_num_layers: int
    base_model_name_or_path: str
    hidden_size: int
    vocab_size: int
    share_output: bool  # the output layers are the base model's LM head, and not in the file


class MedusaHeads(nn.Module):
    """Heads that map hidden states to features; the output layer turns those into logits."""

    def __init__(
        self, heads: int, layers: int, output: torch.Tensor, *, share_output: bool
    ) -> None:
        """Begin as the LM head, whose weights are `output` [V, D]."""
        super().__init__()
        self.layers = layers
        width = int(output.shape[1])
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(layers)) for _ in range(heads)
        )
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)
        copies = [] if share_output else [output.detach().float().clone() for _ in range(heads)]
        self.outputs = nn.ParameterList(nn.Parameter(copy) for copy in copies)

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        """Return what each head hands to its output layer: [N, D] -> heads x [N, D].

        Heads do not look at the tokens that were `spoken` after it.
        """
        result = []
        for blocks in self.blocks:
            x = hidden
            for block in blocks:  # type: ignore[attr-defined]
                x = x + functional.silu(block(x))
            result.append(x)
        return result

    def output(self, head: int, shared: torch.Tensor) -> torch.Tensor:
        """Return the output layer of a head: its own, or the shared one, [V, D]."""
        return self.outputs[head] if len(self.outputs) else shared


def write_heads(
    heads: MedusaHeads, config: HeadsConfig, folder: Path, token_map: Ints, mark: Mark | None = None
) -> None:
    """Write `medusa_lm_head.safetensors` in float16, with the `mark` of its target, and config.

    `token_map` [V] are the tokens, the most frequent first.
    """
    tensors = {name: t.to(torch.float16).cpu().contiguous() for name, t in _named(heads).items()}
    tensors[TOKEN_MAP] = torch.from_numpy(token_map.astype(np.int32))
    save_marked(tensors, folder / WEIGHTS, mark)
    text = json.dumps(asdict(config), indent=2, sort_keys=True) + "\n"
    write_text(folder / "config.json", text)


def _named(heads: MedusaHeads) -> Mapping[str, torch.Tensor]:
    """Return the weights under FasterDecoding's names: `{head}.{layer}.linear.weight` ..."""
    named: dict[str, torch.Tensor] = {}
    for h, blocks in enumerate(heads.blocks):
        layers: list[nn.Linear] = list(blocks.children())  # type: ignore[arg-type]
        for i, block in enumerate(layers):
            named[f"{h}.{i}.linear.weight"] = block.weight.detach()
            named[f"{h}.{i}.linear.bias"] = block.bias.detach()
    for h, output in enumerate(heads.outputs):
        named[f"{h}.{heads.layers}.weight"] = output.detach()
    return named


def medusa_kind(config: RunConfig) -> DrafterKind:
    """Return what `train medusa` makes for a run."""
    options = config.train.medusa
    return DrafterKind("medusa", options, _medusa1 if options.stage == "medusa1" else _medusa2)


def train_medusa(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
    measure: bool = False,
) -> TrainResult:
    """Train Medusa heads as `train.medusa` specifies; a product that is up to date stays.

    Writes `medusa_lm_head.safetensors`, `config.json`, `calibration.json` and a report; medusa2
    also writes `backbone/`, the changed target as a Hugging Face checkpoint. Raises ConfigError for
    text that cannot be used.
    """
    made = medusa_kind(config)
    return produce(made, config, workspace, notify=notify, progress=progress, measure=measure)


def _medusa1(job: TrainingJob, out: Path) -> TrainingReport:
    options = job.config.train.medusa
    heads = _new_heads(job).to(job.placement.device)
    learned = learn(job, heads, options, options.num_heads)
    mark = mark_for(job.target.path)
    _write(job, heads, learned, job.config.target.model, mark, out)
    return report(_title(job), job, options, learned)


def _medusa2(job: TrainingJob, out: Path) -> TrainingReport:
    options, text = job.config.train.medusa, job.text
    job.notify("medusa2 changes the backbone: its answers will differ from the target's")
    train, device = job.config.train, job.placement.device
    model, weights = trainable_copy(job.target, options.lora_rank, train.seed)
    model.to(device)
    if train.gradient_checkpointing:
        recompute_activations(model)
    heads = _new_heads(job).to(device)
    size = documents_a_step(text.training, options.schedule.batch_tokens)
    batches = steps_per_epoch(size, len(text.training))
    labels = np.concatenate([head_labels(d, options.num_heads) for d in text.training])
    task = JointTask(
        model, heads, weights, text, vocabulary(job, labels, options), options,
        train.seed, max(1, round(options.schedule.epochs * batches)), train.micro_batch,
        job.placement.world,
    )  # fmt: skip
    before = task.judge()
    curve = job.train(task, options.schedule, batches)
    after = task.judge()
    merge_lora(model)
    model.to(DTYPES[job.target.dtype]).save_pretrained(out / BACKBONE)
    job.target.tokenizer.save_pretrained(out / BACKBONE)
    mark = mark_for(out / BACKBONE, is_changed=True)
    learned = Learned(curve, before, after, by_frequency(labels, len(job.target.output)))
    _write(job, heads, learned, BACKBONE, mark, out)
    job.notify(f"serve the folder {BACKBONE}/ next to the heads, not {job.config.target.model}")
    return report(_title(job), job, options, learned)


def _title(job: TrainingJob) -> str:
    return f"Medusa heads for {job.config.name}"


def _new_heads(job: TrainingJob) -> MedusaHeads:
    options = job.config.train.medusa
    return MedusaHeads(
        options.num_heads,
        options.num_layers,
        job.target.output,
        share_output=options.share_output,
    )


def _write(
    job: TrainingJob,
    heads: MedusaHeads,
    learned: Learned,
    base: str,
    mark: Mark,
    out: Path,
) -> None:
    options, (vocab_size, width) = job.config.train.medusa, job.target.output.shape
    facts = HeadsConfig(
        options.num_heads, options.num_layers, base, width, vocab_size, options.share_output
    )
    write_heads(heads, facts, out, learned.token_map, mark)
    write_calibration(learned.after.calibration, out)
