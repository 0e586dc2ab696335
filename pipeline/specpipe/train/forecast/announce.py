"""Tells what a training needs before its first step, and refuses one that does not fit."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specpipe.config.run_config import RunConfig
from specpipe.config.training import TrainOptions
from specpipe.core.errors import ConfigError, SpecpipeError, Unsupported
from specpipe.core.machine import memory_bytes
from specpipe.train.forecast.amounts import Amounts, amounts_of
from specpipe.train.forecast.fitting import Sized, rejections
from specpipe.train.forecast.forecast import (
    TrainingForecast,
    counted,
    describe_target,
    forecast,
    refuse,
    room_here,
)
from specpipe.train.forecast.present import lines
from specpipe.train.forecast.rehearsal import rehearse
from specpipe.train.forecast.times import Pace
from specpipe.train.gather import WrittenText
from specpipe.train.job import DrafterKind, TrainingJob
from specpipe.train.placement import TrainingPlace

PROCESSES = "several processes share the training"


@dataclass(frozen=True)
class Announcement:
    """The forecast of a training that is about to begin."""

    made: DrafterKind
    config: RunConfig
    folder: Path
    placement: TrainingPlace
    notify: Callable[[str], None]
    measure: bool

    @property
    def work(self) -> Path:
        """Where the training keeps what it needs on the way."""
        return self.folder / "work"

    def require_memory(self) -> None:
        """Refuse a training whose weights and batches do not fit, before anything is loaded."""
        if (sized := self._sized(Amounts())) is not None:
            found = [r for r in rejections(sized) if "memory" in r.reason or "RAM" in r.reason]
            refuse(self.made.kind, found)

    def announce(self, job: TrainingJob, written: WrittenText | None = None) -> None:
        """Report the forecast; raises Unsupported if the training does not fit.

        `written` is text of which some is still to be answered; else the text of `job` is whole.
        """
        documents = [*job.text.training, *job.text.held_out]
        amounts = (
            counted(self.config, written, job.target.tokenizer)
            if written
            else amounts_of(documents)
        )
        if (sized := self._sized(amounts)) is None:
            return
        found = self.measured(sized, job)
        for line in lines(found):
            self.notify(line)
        refuse(self.made.kind, found.rejections)

    def measured(self, sized: Sized, job: TrainingJob) -> TrainingForecast:
        """Return the forecast, with a measured pace if that is wanted and possible."""
        why = PROCESSES if self.placement.world > 1 else ""
        pace: Pace | None = None
        if self.measure and not why and not rejections(sized):
            self.notify("measuring how long some steps take")
            pace = rehearse(job, self.made.make, sized.work, sized.amounts)
        elif not why:
            why = "the training does not fit" if self.measure else "no measurement was asked for"
        return forecast(sized, self.config.target.model, pace, why)

    def _sized(self, amounts: Amounts) -> Sized | None:
        try:
            _, model = describe_target(self.config)
        except (Unsupported, ConfigError) as error:
            self.notify(f"what the training needs is not estimated: {first_line(error)}")
            return None
        room = room_here(self.folder, gpu_of(self.config.train, self.placement))
        return Sized(self.made.kind, self.config.train, model, amounts, room)


def gpu_of(train: TrainOptions, placement: TrainingPlace) -> tuple[int, str] | None:
    """Return memory and name of the GPU that a training computes on; None: the CPU.

    If the target is spread, the memory of all GPUs and the RAM counts.
    """
    if placement.device.type != "cuda":
        return None
    found = torch.cuda.get_device_properties(placement.device)
    if not train.spread_target:
        return int(found.total_memory), str(found.name)
    count = torch.cuda.device_count()
    all_gpus = sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    return int(all_gpus) + memory_bytes(), f"{count} x {found.name} with the RAM"


def first_line(error: SpecpipeError) -> str:
    """Return what an error tells, without its hint."""
    return error.message.splitlines()[0]
