"""`specpipe train` from end to end: text, training, and an artifact on disk.

A product is a folder with a manifest, like every artifact: it appears whole or not at all, and is
made again only if the target, the text or the options have changed. What is only needed on the way
(answers, hidden states, the checkpoint to resume from) lies next to it in `work/`.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from specpipe.checkpoint.finding import fetch_source
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import (
    Manifest,
    Workspace,
    digest_json,
    locked,
    read_artifact,
    why_stale,
)
from specpipe.core.publishing import remove_leftovers, require_replaceable, staged, write_publish
from specpipe.train.forecast.announce import Announcement
from specpipe.train.gather import gather_text, read_text
from specpipe.train.job import DrafterKind, Make, Notify, Progress, TrainingJob
from specpipe.train.placement import TrainingPlace, determinism, place, target_place
from specpipe.train.report import write_report
from specpipe.train.target import load_target
from specpipe.train.text import Split


@dataclass(frozen=True)
class TrainResult:
    """What a `train` command made, or found up to date."""

    path: Path
    fresh: bool
    reason: str


def produce(
    made: DrafterKind,
    config: RunConfig,
    workspace: Workspace,
    *,
    notify: Notify,
    progress: Progress,
    measure: bool = False,
) -> TrainResult:
    """Make a product in the run's training folder, unless it is up to date.

    Through `notify` it reports what the training needs; with `measure` also how long it takes, by
    a rehearsal of less than a minute. Raises ConfigError, before any work, if something that
    specpipe did not make is in its place; Unsupported if the training does not fit.
    """
    placement = place(config.train)
    folder = training_folder(config, workspace)
    notify = notify if placement.is_first else _silent
    with _alone(folder, placement, notify), determinism(placement.device):
        product = folder / made.kind
        if placement.is_first:
            remove_leftovers(product)
        is_new = read_artifact(product) is None  # else it may be up to date, and then it stays
        if is_new:
            require_replaceable([product])
        ahead = Announcement(made, config, folder, placement, notify, measure)
        job = _prepare(ahead, is_new, progress)
        inputs = _inputs(job, made)
        reason = why_stale(product, "trained", lambda: inputs)
        placement.wait()  # or else a process could look at what a faster one has written
        if reason is None:
            return TrainResult(product, fresh=True, reason="")
        if not is_new:
            ahead.announce(job)
        _publish(replace(job, inputs=inputs), product, made.make)
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


def _prepare(ahead: Announcement, is_new: bool, progress: Progress) -> TrainingJob:
    """Load the target and gather the text; the first process generates answers for all.

    What a new product needs is announced as soon as it is known.
    """
    config, placement, notify, work = ahead.config, ahead.placement, ahead.notify, ahead.work
    if is_new:
        ahead.require_memory()
    path, folder = fetch_source(config, "target", notify).path, ahead.folder
    where = target_place(config.train, placement)
    target = load_target(path, config.train.dtype, folder / ".digests.json", where)
    notify("reading text and generating answers to the prompts")
    written = read_text(config, target.tokenizer)
    job = TrainingJob(config, target, Split((), ()), work, {}, notify, progress, placement)
    if is_new:
        ahead.announce(job, written)
    if not placement.is_first:
        placement.wait()
    text = gather_text(written, config, target, work, notify=notify, progress=progress)
    if placement.is_first:
        placement.wait()
    return replace(job, text=text)


def _inputs(job: TrainingJob, made: DrafterKind) -> dict[str, str]:
    """Return what a product depends on."""
    train, placement = job.config.train, job.placement
    facts = [made.kind, asdict(made.options), train.seed, job.target.dtype]  # type: ignore[call-overload]
    further = {
        "recipe": made.recipe,
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
        _with_usual_modes(temporary)
        write_publish(temporary, product, Manifest("trained", job.inputs))
    job.checkpoint.unlink(missing_ok=True)


def _with_usual_modes(folder: Path) -> None:
    """Give all files the mode of the report: safetensors makes files that only the user reads."""
    mode = (folder / "report.json").stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def training_folder(config: RunConfig, workspace: Workspace) -> Path:
    """Return where the run keeps what it trains."""
    if config.train.out is None:
        return workspace.engines / "train"
    return Path(config.train.out).expanduser()
