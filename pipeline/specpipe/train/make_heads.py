"""The two ways to Medusa heads, each from a job to a folder of files."""

from pathlib import Path

import numpy as np

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace
from specpipe.train.accuracy import Calibration
from specpipe.train.heads import HeadsConfig, MedusaHeads, write_heads
from specpipe.train.joint import JointTask, trainable_copy
from specpipe.train.loop import steps_per_epoch
from specpipe.train.lora import merge_lora
from specpipe.train.make_guesser import Learned, learn, report, vocabulary, write_calibration
from specpipe.train.produce import Job, Notify, Progress, TrainResult, produce
from specpipe.train.report import TrainingReport
from specpipe.train.target import DTYPES
from specpipe.train.text import documents_a_step, head_labels

BACKBONE = "backbone"


def train_medusa(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> TrainResult:
    """Train Medusa heads as `train.medusa` specifies; a product that is up to date stays.

    Writes `medusa_lm_head.safetensors`, `config.json`, `calibration.json` and a report; medusa2
    also writes `backbone/`, the changed target as a Hugging Face checkpoint. Raises ConfigError for
    text that cannot be used.
    """
    options = config.train.medusa
    make = _medusa1 if options.stage == "medusa1" else _medusa2
    return produce("medusa", options, make, config, workspace, notify=notify, progress=progress)


def _medusa1(job: Job, out: Path) -> TrainingReport:
    options = job.config.train.medusa
    heads = _new_heads(job)
    learned = learn(job, heads, options, options.num_heads)
    _write(job, heads, learned.calibration, job.config.target.model, out)
    return report(_title(job), job, options, learned)


def _medusa2(job: Job, out: Path) -> TrainingReport:
    options, text = job.config.train.medusa, job.text
    job.notify("medusa2 changes the backbone: its answers will differ from the target's")
    model, weights = trainable_copy(job.target, options.lora_rank, job.config.train.seed)
    heads = _new_heads(job)
    size = documents_a_step(text.training, options.schedule.batch_tokens)
    batches = steps_per_epoch(size, len(text.training))
    labels = np.concatenate([head_labels(d, options.num_heads) for d in text.training])
    task = JointTask(
        model, heads, weights, text, vocabulary(job, labels, options), options,
        job.config.train.seed, max(1, round(options.schedule.epochs * batches)),
    )  # fmt: skip
    before, _ = task.judge()
    curve = job.train(task, options.schedule, batches)
    after, calibration = task.judge()
    merge_lora(model)
    model.to(DTYPES[job.target.dtype]).save_pretrained(out / BACKBONE)
    job.target.tokenizer.save_pretrained(out / BACKBONE)
    _write(job, heads, calibration, BACKBONE, out)
    job.notify(f"serve the folder {BACKBONE}/ next to the heads, not {job.config.target.model}")
    return report(_title(job), job, options, Learned(curve, before, after, calibration))


def _title(job: Job) -> str:
    return f"Medusa heads for {job.config.name}"


def _new_heads(job: Job) -> MedusaHeads:
    options = job.config.train.medusa
    return MedusaHeads(
        options.num_heads,
        options.num_layers,
        job.target.output,
        share_output=options.share_output,
    )


def _write(job: Job, heads: MedusaHeads, calibration: Calibration, base: str, out: Path) -> None:
    options, (vocab_size, width) = job.config.train.medusa, job.target.output.shape
    facts = HeadsConfig(
        options.num_heads, options.num_layers, base, width, vocab_size, options.share_output
    )
    write_heads(heads, facts, out)
    write_calibration(calibration, out)
