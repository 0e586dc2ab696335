"""`train medusa` and `train draft` from end to end: text, training, and an artifact on disk.

A product is a folder with a manifest, like every artifact: it appears whole or not at all, and is
made again only if the target, the text or the options have changed. What is only needed on the way
(answers, hidden states, the checkpoint to resume from) lies next to it in `work/`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
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

    @property
    def key(self) -> str:
        """What the outcome depends on, as a digest."""
        return digest_json(dict(self.inputs))

    def train(self, task: TrainingTask, schedule: Schedule, batches: int) -> tuple[Point, ...]:
        """Train `task` for the epochs of `schedule`, `batches` steps each."""
        plan = TrainingPlan(schedule, max(1, round(schedule.epochs * batches)))
        self.notify(f"training: {plan.steps} steps")
        return train(task, plan, self.checkpoint, self.key, progress=self.progress)

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
) -> TrainResult:
    """Make the product `kind` in the run's training folder, unless it is up to date.

    `options` is the record that it depends on; `make` fills an empty folder and returns the report.
    Another `recipe`, such as the formula of a net, makes the product stale.
    Raises ConfigError, before any work, if something that specpipe did not make is in its place.
    """
    folder = training_folder(config, workspace)
    place, work = folder / kind, folder / "work"
    with locked(folder, notify), determinism():
        remove_leftovers(place)
        if read_artifact(place) is None:  # else it may be up to date, and then it stays
            require_replaceable([place])
        path = fetch_source(config, "target", notify).path
        target = load_target(path, config.train.dtype, folder / ".digests.json")
        notify("reading text and generating answers to the prompts")
        text = gather_text(config, target, work, notify=notify, progress=progress)
        inputs = {
            "target": target.digest,
            "text": text.digest(),
            "options": digest_json([kind, asdict(options), config.train.seed, target.dtype]),  # type: ignore[call-overload]
            "torch": torch.__version__,
            **({"recipe": recipe} if recipe else {}),
        }
        reason = why_stale(place, "trained", lambda: inputs)
        if reason is None:
            return TrainResult(place, fresh=True, reason="")
        job = TrainingJob(config, target, text, work, inputs, notify, progress)
        _publish(job, place, make)
        return TrainResult(place, fresh=False, reason=reason)


def _publish(job: TrainingJob, place: Path, make: Make) -> None:
    with staged(place, "train") as temporary:
        write_report(make(job, temporary), temporary)
        write_publish(temporary, place, Manifest("trained", job.inputs))
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


@contextlib.contextmanager
def determinism() -> Iterator[None]:
    """Make torch refuse, in a `with` block, operations whose result could differ between runs."""
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
