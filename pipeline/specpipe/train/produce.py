"""`train medusa` and `train draft` from end to end: text, training, and an artifact on disk.

A product is a folder with a manifest, like every artifact: it appears whole or not at all, and is
made again only if the target, the text or the options have changed. What is only needed on the way
(answers, hidden states, the checkpoint to resume from) lies next to it in `work/`.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from specpipe.checkpoint.finding import fetch_source
from specpipe.config.run_config import RunConfig
from specpipe.config.training import Schedule
from specpipe.core.artifacts import (
    Manifest,
    Workspace,
    digest_json,
    locked,
    read_artifact,
    why_stale,
)
from specpipe.core.publishing import remove_leftovers, require_replaceable, staged, write_publish
from specpipe.train.gather import gather_text
from specpipe.train.loop import Point, TrainingPlan, TrainingTask, train
from specpipe.train.placement import HERE, TrainingPlace, determinism, place
from specpipe.train.report import TrainingReport, write_report
from specpipe.train.target import Target, load_target
from specpipe.train.text import Split

Progress = Callable[[int, int], None]
Notify = Callable[[str], None]


@dataclass(frozen=True)
class TrainingJob:
    """One training: what it starts from, where it works, and whom it tells."""

    config: RunConfig
    target: Target
    text: Split
    work: Path
    inputs: Mapping[str, str]
    notify: Notify
    progress: Progress
    placement: TrainingPlace = HERE

    @property
    def key(self) -> str:
        """What the outcome depends on, as a digest."""
        return digest_json(dict(self.inputs))

    def train(self, task: TrainingTask, schedule: Schedule, batches: int) -> tuple[Point, ...]:
        """Train `task` for the epochs of `schedule`, `batches` steps each."""
        plan = TrainingPlan(schedule, max(1, round(schedule.epochs * batches)))
        self.notify(f"training: {plan.steps} steps")
        return train(
            task, plan, self.checkpoint, self.key, progress=self.progress, placement=self.placement
        )

    @property
    def checkpoint(self) -> Path:
        """The file that a killed training resumes from."""
        return self.work / f"resume-{self.key[:16]}.pt"


@dataclass(frozen=True)
class TrainResult:
    """What a `train` command made, or found up to date."""

    path: Path
    fresh: bool
    reason: str


Make = Callable[[TrainingJob, Path], TrainingReport]


def produce(
    kind: str,
    options: object,
    make: Make,
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify,
    progress: Progress,
    recipe: str = "",
    only_cpu: bool = False,
) -> TrainResult:
    """Make the product `kind` in the run's training folder, unless it is up to date.

    `options` is the record that it depends on; `make` fills an empty folder and returns the report.
    `only_cpu` products are trained on the CPU, in one process. Another `recipe`, such as the
    formula of a net, makes the product stale.
    Raises ConfigError, before any work, if something that specpipe did not make is in its place.
    """
    placement = place(config.train, only_cpu=only_cpu)
    folder = training_folder(config, workspace)
    notify = notify if placement.is_first else _silent
    with _alone(folder, placement, notify), determinism(placement.device):
        product = folder / kind
        if placement.is_first:
            remove_leftovers(product)
        if read_artifact(product) is None:  # else it may be up to date, and then it stays
            require_replaceable([product])
        job = _prepare(config, folder, placement, notify, progress)
        inputs = _inputs(job, kind, options, recipe)
        reason = why_stale(product, "trained", lambda: inputs)
        placement.wait()  # or else a process could look at what a faster one has written
        if reason is None:
            return TrainResult(product, fresh=True, reason="")
        _publish(replace(job, inputs=inputs), product, make)
        placement.wait()
        return TrainResult(product, fresh=False, reason=reason)


@contextlib.contextmanager
def _alone(folder: Path, placement: TrainingPlace, notify: Notify) -> Iterator[None]:
    """Hold the folder's lock in the first process of a training."""
    with contextlib.ExitStack() as stack:
        if placement.is_first:
            stack.enter_context(locked(folder, notify))
        placement.wait()
        yield


def _prepare(
    config: RunConfig, folder: Path, placement: TrainingPlace, notify: Notify, progress: Progress
) -> TrainingJob:
    """Load the target and gather the text; the first process generates answers for all."""
    path, work = fetch_source(config, "target", notify).path, folder / "work"
    device = placement.device
    target = load_target(path, config.train.dtype, folder / ".digests.json", device)
    notify("reading text and generating answers to the prompts")
    if not placement.is_first:
        placement.wait()
    text = gather_text(config, target, work, notify=notify, progress=progress)
    if placement.is_first:
        placement.wait()
    return TrainingJob(config, target, text, work, {}, notify, progress, placement)


def _inputs(job: TrainingJob, kind: str, options: object, recipe: str) -> dict[str, str]:
    """Return what a product depends on."""
    train, placement = job.config.train, job.placement
    facts = [kind, asdict(options), train.seed, job.target.dtype]  # type: ignore[call-overload]
    further = {
        "recipe": recipe,
        "numerics": placement.numerics,
        "micro_batch": str(train.micro_batch or ""),
        "hidden_states": train.hidden_states.removeprefix("disk"),
        "gradient_checkpointing": "true" if train.gradient_checkpointing else "",
    }
    return {
        "target": job.target.digest,
        "text": job.text.digest(),
        "options": digest_json(facts),
        "torch": torch.__version__,
        **{name: value for name, value in further.items() if value},
    }


def _silent(text: str) -> None:
    """Report nothing: only the first process of a training does."""


def _publish(job: TrainingJob, product: Path, make: Make) -> None:
    if not job.placement.is_first:
        with tempfile.TemporaryDirectory() as unused:
            make(job, Path(unused))
        return
    with staged(product, "train") as temporary:
        write_report(make(job, temporary), temporary)
        write_publish(temporary, product, Manifest("trained", job.inputs))
    job.checkpoint.unlink(missing_ok=True)


def training_folder(config: RunConfig, workspace: Workspace) -> Path:
    """Return where the run keeps what it trains."""
    if config.train.out is None:
        return workspace.engines / "train"
    return Path(config.train.out).expanduser()


def text_facts(job: TrainingJob) -> dict[str, str | int | float]:
    """Return a report's facts about target and text."""
    text = job.text
    return {
        "target": job.config.target.model,
        "dtype": job.target.dtype,
        "documents": len(text.training),
        "tokens": sum(map(len, text.training)),
        "learned tokens": sum(int(d.learned.sum()) for d in text.training),
        "hold-out documents": len(text.held_out),
        "hold-out tokens": sum(map(len, text.held_out)),
        **text.left_out,
        "seed": job.config.train.seed,
    }
