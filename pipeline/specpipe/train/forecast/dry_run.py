"""`specpipe train KIND --dry-run`: the forecast of a training that is not begun."""

from collections.abc import Callable
from pathlib import Path

from specpipe.checkpoint.source import Source
from specpipe.checkpoint.tokenizer_files import open_tokenizer
from specpipe.config.run_config import RunConfig
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.gpus import find_gpu, unknown_gpu
from specpipe.train.forecast.amounts import Amounts, unread
from specpipe.train.forecast.announce import Announcement, gpu_of
from specpipe.train.forecast.fitting import Room, Sized, rejections
from specpipe.train.forecast.forecast import (
    TrainingForecast,
    by_sheet,
    counted,
    describe_target,
    forecast,
    room_here,
    uncounted,
    without_datasets,
)
from specpipe.train.gather import read_text
from specpipe.train.job import DrafterKind, TrainingJob
from specpipe.train.placement import determinism, place, target_place
from specpipe.train.target import load_target
from specpipe.train.text import Split

ABSENT = "the weights of the target are not on this disk"


def dry_run(
    made: DrafterKind,
    config: RunConfig,
    folder: Path,
    *,
    gpu: str | None,
    notify: Callable[[str], None],
    room: Room | None = None,
) -> TrainingForecast:
    """Return what a training would need; fetches nothing and writes nothing but digests.

    `gpu` names a GPU of the table, which this machine need not have; else the training is that of
    this machine, or of another `room`. Its pace is measured if the weights are on the disk and it
    fits. Raises ConfigError for a GPU that is not known, Unsupported for an unknown target.
    """
    source, model = describe_target(config)
    amounts = _amounts(config, source)
    if gpu is not None:
        known = find_gpu(gpu)
        if known is None:
            reason = unknown_gpu(gpu, "--gpu")
            raise ConfigError(reason.reason, hint=reason.hint)
        return by_sheet(made.kind, config, amounts, known)
    placement = place(config.train)
    there = room or room_here(folder, gpu_of(config.train, placement))
    sized = Sized(made.kind, config.train, model, amounts, there)
    if source is None or source.missing or rejections(sized):
        why = ABSENT if source is None or source.missing else "the training does not fit"
        return forecast(sized, config.target.model, None, why)
    with determinism(placement.device):
        where = target_place(config.train, placement)
        target = load_target(source.path, config.train.dtype, folder / ".digests.json", where)
        ahead = Announcement(made, config, folder, placement, notify, measure=True)
        job = TrainingJob(
            config, target, Split((), ()), ahead.work, {}, notify, lambda done, total: None,
            placement,
        )  # fmt: skip
        return ahead.measured(sized, job)


def _amounts(config: RunConfig, source: Source | None) -> Amounts:
    """Count the text that is on this disk, and bound the rest."""
    local = without_datasets(config)
    tokenizer = None
    if source is not None:
        try:
            tokenizer = open_tokenizer(source).reader
        except (ConfigError, Unsupported):  # training would refuse it; sizes need none
            tokenizer = None
    if tokenizer is None:
        return uncounted(config)
    if not _has_text(local):
        return unread(config)
    return counted(config, read_text(local, tokenizer), tokenizer).plus(unread(config))


def _has_text(config: RunConfig) -> bool:
    how = config.train.self_distillation
    return bool(config.train.files or (how and (how.prompts or how.invented_prompts)))
