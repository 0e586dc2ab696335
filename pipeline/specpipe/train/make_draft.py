"""A distilled draft, from a job to a Hugging Face folder."""

from dataclasses import asdict
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace
from specpipe.train.draft import DraftTask, kept_layers, prune
from specpipe.train.loop import steps_per_epoch
from specpipe.train.produce import Job, Notify, Progress, TrainResult, produce, text_facts
from specpipe.train.report import TrainingReport
from specpipe.train.target import DTYPES
from specpipe.train.text import documents_a_step


def train_draft(
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> TrainResult:
    """Make a draft as `train.draft` specifies: the target with fewer layers, distilled.

    Writes a Hugging Face checkpoint with the target's tokenizer, and a report; an up-to-date
    product is kept. Raises ConfigError for text or layers that cannot be used.
    """
    return produce(
        "draft", config.train.draft, _draft, config, workspace, notify=notify, progress=progress
    )


def _draft(job: Job, out: Path) -> TrainingReport:
    options, text = job.config.train.draft, job.text
    layers = kept_layers(options, int(job.target.model.config.num_hidden_layers))
    job.notify(f"draft: layers {', '.join(map(str, layers))} of the target")
    model = prune(job.target.model, layers)
    task = DraftTask(job.target, model, text, options, job.config.train.seed)
    before = task.judge(text.held_out)
    size = documents_a_step(text.training, options.schedule.batch_tokens)
    curve = job.train(task, options.schedule, steps_per_epoch(size, len(text.training)))
    after = task.judge(text.held_out)
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
    )
