"""Run the stages in order: convert, compile, package. Up-to-date stages are skipped."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import or_
from pathlib import Path

from specpipe.core.artifacts import MISSING, describe_changes, locked, read_artifact
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.publishing import (
    put_back,
    remove_leftovers,
    require_replaceable,
    staged,
    why_kept,
    write_publish,
)
from specpipe.engine.backend import Workshop
from specpipe.plan.make_plan import require_buildable
from specpipe.run.jobs import STAGES, Job, Progress, StageName
from specpipe.run.run import Run

Notify = Callable[[str], None]
NOT_COMPARED = "not compared"  # begins the reason for an artifact whose inputs cannot be read


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage for one model."""

    stage: StageName
    role: Role | None  # None: the stage works on the whole run
    path: Path
    fresh: bool  # the artifact was up to date
    reason: str  # why it was built or must be built
    seconds: float = 0.0


def build(
    run: Run,
    stages: tuple[StageName, ...] = STAGES,
    *,
    runtime: str | None = None,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> list[StageResult]:
    """Run the given stages; a stage whose artifact is up to date is skipped.

    With `runtime` (docker or podman) the compiler runs in the NVIDIA container of its release.

    Raises Unsupported with every reason if the plan is refused, ConfigError if files
    that specpipe did not write are where an artifact must go, both before any work. Raises
    StageFailed or ConfigError if a stage cannot finish. Finished artifacts stay, and the next
    build reuses them.
    """
    wanted = [job for part in run.parts for job in part.jobs if job.stage in stages]
    require_room(wanted)
    require_buildable(run.plan)
    if runtime and not run.plan.commands:
        raise Unsupported(
            f"backend {run.config.engine.backend} compiles in this process, not in a container",
            hint="leave --in-container out",
        )
    shop = Workshop(notify, runtime)
    with locked(run.workspace.engines, notify):
        for job in wanted:
            put_back(job.path)
        return [r for part in run.parts for r in _build_part(part, stages, shop, progress)]


def _build_part(
    run: Run, stages: Sequence[StageName], shop: Workshop, progress: Progress
) -> Iterator[StageResult]:
    """Make the wanted artifacts of a run, without those of its baseline."""
    for job in run.jobs:
        if job.stage not in stages:
            continue
        if job.stage == "package":
            require_planned_engines(run.jobs)
        yield _perform(job, shop, progress)


def _perform(job: Job, shop: Workshop, progress: Progress) -> StageResult:
    reason = job.stale()
    if reason is None:
        remove_leftovers(job.path)
        return StageResult(job.stage, job.role, job.path, fresh=True, reason="")
    shop.notify(f"{job.stage}{' ' + job.role if job.role else ''}: building ({reason})")
    began = time.perf_counter()
    started = job.start(shop)
    remove_leftovers(job.path, started.resume_key)
    with staged(job.path, job.stage, started.resume_key) as temporary:
        write_publish(temporary, job.path, started.write(temporary, progress))
    return StageResult(
        job.stage,
        job.role,
        job.path,
        fresh=False,
        reason=reason,
        seconds=time.perf_counter() - began,
    )


def status(run: Run) -> list[StageResult]:
    """Return for every artifact whether it is up to date, and why not; changes nothing.

    If a model is not there or cannot be read, the artifacts that exist are listed as not compared.
    """
    try:
        jobs = [job for part in run.parts for job in part.jobs]
    except (ConfigError, Unsupported) as error:
        return list(_uncompared(run, error))
    return [_status(job) for job in jobs]


def _uncompared(run: Run, error: ConfigError | Unsupported) -> Iterator[StageResult]:
    """Yield which artifacts exist, for a run whose inputs cannot be read."""
    config, serves = run.config, run.config.engine.traits.serves_sources
    runs = [config, *([config.baseline] if config.validate.baseline == "build" else [])]
    for each in runs:
        place = replace(run.workspace, name=each.name)
        roles: list[Role] = ["target"] if serves else list(each.models())
        paths: list[tuple[StageName, Role | None, Path]] = [
            *(("convert", role, place.checkpoint(role)) for role in roles if not serves),
            *(("compile", role, place.engine(role)) for role in roles),
            ("package", None, place.repository),
        ]
        for stage, role, path in paths:
            there = read_artifact(path) is not None
            reason = f"{NOT_COMPARED}: {str(error).splitlines()[0]}" if there else MISSING
            yield StageResult(stage, role, path, fresh=False, reason=reason)


def _status(job: Job) -> StageResult:
    try:
        reason = job.stale()
    except ConfigError as error:  # the artifact of an earlier stage is missing
        reason = str(error).splitlines()[0]
    if reason is not None and (kept := why_kept(job.path)):
        reason = f"cannot be built: {kept}"
    return StageResult(job.stage, job.role, job.path, reason is None, reason or "")


def require_room(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if files that specpipe did not write are where an artifact must go.

    An artifact's folder that also holds other files is refused only if it must be replaced, which
    means that the artifact or one of its inputs is stale.
    """
    kept = [job for job in jobs if why_kept(job.path)]
    if kept:
        stale = itertools.accumulate(map(_is_stale, jobs), or_)
        require_replaceable(
            [j.path for j, old in zip(jobs, stale, strict=True) if old and j in kept]
        )


def _is_stale(job: Job) -> bool:
    try:
        return job.stale() is not None
    except ConfigError:  # one of its inputs is not built
        return True


def require_planned_engines(jobs: Sequence[Job]) -> None:
    """Raise ConfigError if an engine was compiled with other options or for another GPU.

    The package stage itself reports missing engines and changed weights.
    """
    for job in jobs:
        engine = read_artifact(job.path) if job.stage == "compile" else None
        if engine is None:
            continue
        built, asked = ({**engine.manifest.inputs}, {**job.inputs()})
        for values in (built, asked):  # the LLM API has no checkpoint
            values.pop("checkpoint", None)
        changes = describe_changes(built, asked)
        if changes:
            raise ConfigError(
                f"{job.path} is stale: it was compiled with different settings than the config "
                f"has now: {changes}",
                hint="run `specpipe build`",
            )


def require_repository(run: Run) -> None:
    """Raise ConfigError if the run's repository is missing or stale."""
    repository = run.workspace.repository
    reason = run.jobs[-1].stale()
    require_planned_engines(run.jobs)
    if reason is not None:
        state = "it is not built yet" if reason == MISSING else f"it is stale: {reason}"
        raise ConfigError(
            f"{repository} cannot be served: {state}",
            hint=f"run `specpipe build --config {run.config.path}`",
        )
