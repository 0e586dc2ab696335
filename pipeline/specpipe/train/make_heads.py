"""The two ways to Medusa heads, each from a job to a folder of files."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from specpipe.artifacts import Workspace, write_text
from specpipe.checkpoint.medusa import CALIBRATION
from specpipe.config import RunConfig
from specpipe.contracts import Ints
from specpipe.train.accuracy import Calibration, HeadAccuracy
from specpipe.train.features import Features, read_features
from specpipe.train.heads import HeadsConfig, MedusaHeads, write_heads
from specpipe.train.joint import JointTask, trainable_copy
from specpipe.train.loop import Point, steps_per_epoch
from specpipe.train.lora import merge_lora
from specpipe.train.loss import Vocabulary, frequent_tokens
from specpipe.train.medusa import HeadsTask, judge
from specpipe.train.produce import Job, Notify, Progress, TrainResult, produce, text_facts
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
    """Train Medusa heads as `train.medusa` says; a fresh product is left as it is.

    Writes `medusa_lm_head.safetensors`, `config.json`, `calibration.json` and a report; medusa2
    also writes `backbone/`, the changed target as a Hugging Face checkpoint. Raises ConfigError for
    text that cannot be used.
    """
    options = config.train.medusa
    make = _medusa1 if options.stage == "medusa1" else _medusa2
    return produce("medusa", options, make, config, workspace, notify=notify, progress=progress)


def _medusa1(job: Job, out: Path) -> TrainingReport:
    options, output = job.config.train.medusa, job.target.output
    training, held_out = _features(job)
    heads = _new_heads(job)
    before, _ = judge(heads, output, held_out)
    task = HeadsTask(
        heads, output, training, held_out, _vocabulary(job, training.labels), options,
        job.config.train.seed,
    )  # fmt: skip
    steps = steps_per_epoch(options.schedule.batch_tokens, len(training))
    curve = job.train(task, options.schedule, steps)
    after, calibration = judge(heads, output, held_out)
    _write(job, heads, calibration, job.config.target.model, out)
    return _report(job, curve, before, after)


def _features(job: Job) -> tuple[Features, Features]:
    job.notify("hidden states of the target: computing what is not cached")
    heads = job.config.train.medusa.num_heads
    first, second = (
        read_features(job.target, documents, heads, job.work, progress=job.progress)
        for documents in (job.text.training, job.text.held_out)
    )
    return first, second


def _medusa2(job: Job, out: Path) -> TrainingReport:
    options, text = job.config.train.medusa, job.text
    job.notify("medusa2 changes the backbone: its answers will differ from the target's")
    model, weights = trainable_copy(job.target, options.lora_rank, job.config.train.seed)
    heads = _new_heads(job)
    size = documents_a_step(text.training, options.schedule.batch_tokens)
    batches = steps_per_epoch(size, len(text.training))
    labels = np.concatenate([head_labels(d, options.num_heads) for d in text.training])
    task = JointTask(
        model, heads, weights, text, _vocabulary(job, labels), options, job.config.train.seed,
        max(1, round(options.schedule.epochs * batches)),
    )  # fmt: skip
    before, _ = task.judge()
    curve = job.train(task, options.schedule, batches)
    after, calibration = task.judge()
    merge_lora(model)
    model.to(DTYPES[job.target.dtype]).save_pretrained(out / BACKBONE)
    job.target.tokenizer.save_pretrained(out / BACKBONE)
    _write(job, heads, calibration, BACKBONE, out)
    job.notify(f"serve the folder {BACKBONE}/ beside the heads, not {job.config.target.model}")
    return _report(job, curve, before, after)


def _new_heads(job: Job) -> MedusaHeads:
    options = job.config.train.medusa
    return MedusaHeads(
        options.num_heads,
        options.num_layers,
        job.target.output,
        share_output=options.share_output,
    )


def _vocabulary(job: Job, labels: Ints) -> Vocabulary:
    options = job.config.train.medusa
    frequent = frequent_tokens(labels, options.loss_vocabulary)
    return Vocabulary(int(job.target.output.shape[0]), frequent, options.loss_samples)


def _write(job: Job, heads: MedusaHeads, calibration: Calibration, base: str, out: Path) -> None:
    options, (vocab_size, width) = job.config.train.medusa, job.target.output.shape
    facts = HeadsConfig(
        options.num_heads, options.num_layers, base, width, vocab_size, options.share_output
    )
    write_heads(heads, facts, out)
    text = json.dumps(calibration.to_json(), indent=1, sort_keys=True) + "\n"
    write_text(out / CALIBRATION, text)


def _report(
    job: Job,
    curve: tuple[Point, ...],
    before: list[HeadAccuracy],
    after: list[HeadAccuracy],
) -> TrainingReport:
    options = job.config.train.medusa
    return TrainingReport(
        f"Medusa heads for {job.config.name}",
        {
            **text_facts(job),
            **{k: v for k, v in asdict(options).items() if k != "schedule"},
            **asdict(options.schedule),
            "steps": curve[-1].step,
        },
        curve,
        {f"head {k} top-1": head.top[0] for k, head in enumerate(before)},
        {f"head {k} top-1": head.top[0] for k, head in enumerate(after)},
        after,
    )
