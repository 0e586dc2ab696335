"""One training as a record: what it starts from, what it makes, and the facts of its report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.config.training import Schedule
from specpipe.core.artifacts import digest_json
from specpipe.train.loop import Point, TrainingPlan, TrainingTask, train
from specpipe.train.placement import HERE, TrainingPlace
from specpipe.train.report import TrainingReport
from specpipe.train.target import Target
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


Make = Callable[[TrainingJob, Path], TrainingReport]


@dataclass(frozen=True)
class DrafterKind:
    """A kind of drafter, and how it is made."""

    kind: str  # as in `specpipe train KIND`, and the name of its folder
    options: object  # the record that it depends on
    make: Make  # fills an empty folder and returns the report
    recipe: str = ""  # another one, such as the formula of a net, makes the product stale


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
