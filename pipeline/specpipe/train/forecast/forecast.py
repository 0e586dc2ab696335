"""What a training will need and how long it will take, for `train --dry-run` and every start."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from specpipe.checkpoint.families import read_facts
from specpipe.checkpoint.finding import find_source, in_cache
from specpipe.checkpoint.source import Source, known_model
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.machine import memory_bytes
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import Gpu
from specpipe.train.forecast.amounts import Amounts, amounts_of, answered, by_size, unread
from specpipe.train.forecast.fitting import Room, Sized, rejections
from specpipe.train.forecast.needs import TrainingNeeds
from specpipe.train.forecast.times import Durations, Pace, durations, sheet_pace
from specpipe.train.gather import WrittenText

_STATES = ("features-*", "layers-*")  # files of hidden states that a training would use again


@dataclass(frozen=True)
class TrainingForecast:
    """The estimate of one training."""

    kind: str
    target: str
    amounts: Amounts
    needs: TrainingNeeds
    room: Room
    times: Durations | None
    not_measured: str  # why the time is not measured; empty if it is
    rejections: tuple[Rejection, ...]


def forecast(sized: Sized, target: str, pace: Pace | None, not_measured: str) -> TrainingForecast:
    """Return the estimate of a training; without a pace it has no times."""
    times = durations(sized.train, sized.work, sized.amounts, pace) if pace else None
    return TrainingForecast(
        sized.kind,
        target,
        sized.amounts,
        sized.needs,
        sized.room,
        times,
        not_measured,
        tuple(rejections(sized)),
    )


def by_sheet(kind: str, config: RunConfig, amounts: Amounts, gpu: Gpu) -> TrainingForecast:
    """Return the estimate for a GPU that this machine need not have; nothing is measured.

    The machine around it is not known: RAM and disk are stated and not compared. Raises Unsupported
    for a target whose sizes are not known.
    """
    _, model = describe_target(config)
    room = Room(None, None, gpu.memory_bytes, gpu.name)
    sized = Sized(kind, config.train, model, amounts, room)
    pace = sheet_pace(config.train, sized.work, model, amounts, gpu)
    return forecast(sized, config.target.model, pace, "estimated from the data sheet of the GPU")


def describe_target(config: RunConfig) -> tuple[Source | None, ModelConfig]:
    """Return the target's files, without weights, and its facts; None: only its sizes are known.

    Raises Unsupported if its architecture is not known, ConfigError if it is nowhere.
    """
    name = config.target.model
    here = find_file(name, config) is not None or in_cache(config, "target")
    known = None if here else known_model(name)
    if known is not None:
        return None, read_facts(known, config.train.dtype, Path(name))
    source = find_source(config, "target")
    return source, read_facts(source.hf_config, config.train.dtype, source.config_file)


def room_here(folder: Path, gpu: tuple[int, str] | None) -> Room:
    """Return the room on this machine for a training that works in `folder`."""
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    work = folder / "work"
    there = (file.stat().st_blocks * 512 for name in _STATES for file in work.glob(name))
    free = shutil.disk_usage(place).free + sum(there)
    memory, name = gpu or (None, None)
    return Room(memory_bytes(), free, memory, name)


def counted(config: RunConfig, written: WrittenText, tokenizer: object) -> Amounts:
    """Return the text of a training that was read, with bounds of what will be answered."""
    found, how = amounts_of(written.documents), config.train.self_distillation
    if how is None:
        return found
    return found.plus(answered(config, how, written.prompts, tokenizer))


def uncounted(config: RunConfig) -> Amounts:
    """Bound the text of a training without a tokenizer, by sizes and numbers of rows."""
    found, how = by_size(config).plus(unread(config)), config.train.self_distillation
    if how is None:
        return found
    return found.plus(answered(config, how, (), None))


def without_datasets(config: RunConfig) -> RunConfig:
    """Return a run whose text is on this disk: reading it fetches nothing."""
    train, how = config.train, config.train.self_distillation
    own = replace(how, datasets=()) if how else None
    return replace(config, train=replace(train, datasets=(), self_distillation=own))


def refuse(kind: str, reasons: Iterable[Rejection]) -> None:
    """Raise Unsupported with every reason, if there is one."""
    listed = "\n".join(f"  - {reason}" for reason in reasons)
    if listed:
        raise Unsupported(f"train {kind}: this training does not fit:\n{listed}")
