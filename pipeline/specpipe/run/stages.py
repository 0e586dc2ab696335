"""Run the stages in order: convert, compile, package. Up-to-date stages are skipped."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import MISSING, Workspace, locked
from specpipe.core.backend import Workshop
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.publishing import put_back, remove_leftovers, staged, why_kept, write_publish
from specpipe.plan.make_plan import make_plan, require_buildable
from specpipe.run.jobs import (
    STAGES,
    Job,
    StageName,
    plan_jobs,
    plans_of,
    require_planned_engines,
    require_room,
)

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


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
    config: RunConfig,
    workspace: Workspace,
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
    plan = make_plan(config, workspace)
    shop = Workshop(notify, runtime)
    runs = [plan_jobs(part, place, shop) for part, place in plans_of(plan, workspace)]
    wanted = [work for works in runs for work in works if work.stage in stages]
    require_room(wanted)
    require_buildable(plan)
    if runtime and not plan.commands:
        raise Unsupported(
            f"backend {config.engine.backend} compiles in this process, not in a container",
            hint="leave --in-container out",
        )
    with locked(workspace.engines, notify):
        results = []
        for work in wanted:
            put_back(work.path)
        for work in wanted:
            if work.stage == "package":
                require_planned_engines(next(works for works in runs if work in works))
            results.append(_perform(work, notify, progress))
        return results


def status(config: RunConfig, workspace: Workspace) -> list[StageResult]:
    """Return for every artifact whether it is up to date, and why not; changes nothing."""
    results = []
    runs = plans_of(make_plan(config, workspace), workspace)
    for work in (work for part, place in runs for work in plan_jobs(part, place)):
        try:
            reason = work.stale()
        except ConfigError as error:  # the artifact of an earlier stage is missing
            reason = str(error).splitlines()[0]
        if reason is not None and (kept := why_kept(work.path)):
            reason = f"cannot be built: {kept}"
        results.append(StageResult(work.stage, work.role, work.path, reason is None, reason or ""))
    return results


def _perform(work: Job, notify: Notify, progress: Progress) -> StageResult:
    reason = work.stale()
    if reason is None:
        remove_leftovers(work.path)
        return StageResult(work.stage, work.role, work.path, fresh=True, reason="")
    notify(f"{work.stage}{' ' + work.role if work.role else ''}: building ({reason})")
    began = time.perf_counter()
    resume = work.begun() if work.begun else None
    remove_leftovers(work.path, resume)
    with staged(work.path, work.stage, resume) as temporary:
        write_publish(temporary, work.path, work.write(temporary, progress))
    return StageResult(
        work.stage,
        work.role,
        work.path,
        fresh=False,
        reason=reason,
        seconds=time.perf_counter() - began,
    )


def require_repository(config: RunConfig, workspace: Workspace) -> None:
    """Raise ConfigError if the run's repository is missing or stale."""
    works = plan_jobs(make_plan(config, workspace), workspace)
    reason = works[-1].stale()
    require_planned_engines(works)
    if reason is not None:
        state = "it is not built yet" if reason == MISSING else f"it is stale: {reason}"
        raise ConfigError(
            f"{workspace.repository} cannot be served: {state}",
            hint=f"run `specpipe build --config {config.path}`",
        )
