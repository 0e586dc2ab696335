"""The stages in order: convert, compile, package. What is fresh is skipped, and said to be."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specpipe.artifacts import Workspace, locked
from specpipe.building import Workshop
from specpipe.config import RunConfig
from specpipe.contracts import Role
from specpipe.errors import ConfigError, Unsupported
from specpipe.planning import make_plan, require_buildable
from specpipe.publishing import put_back, remove_leftovers, staged, why_kept, write_publish
from specpipe.work import (
    STAGES,
    StageName,
    Work,
    plan_work,
    plans_of,
    require_planned_engines,
    require_room,
)

Notify = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StageResult:
    """What one stage did for one model."""

    stage: StageName
    role: Role | None  # None: the stage works on the whole run
    path: Path
    fresh: bool  # nothing had to be done
    reason: str  # why it was built, or would be
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
    """Run the given stages; a stage whose artifact is fresh is skipped.

    With `runtime` (docker, podman) the backend's compiler runs in the container of its release.

    Raises Unsupported with every reason if the plan is refused, ConfigError if something that is
    not ours stands where an artifact must go, both before any work; StageFailed or ConfigError if
    a stage cannot finish; whatever was finished before stays and is reused by the next build.
    """
    plan = make_plan(config, workspace)
    shop = Workshop(notify, runtime)
    runs = [plan_work(part, place, shop) for part, place in plans_of(plan, workspace)]
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
    """Say of every artifact of the run whether it is fresh, and if not, why; changes nothing."""
    results = []
    runs = plans_of(make_plan(config, workspace), workspace)
    for work in (work for part, place in runs for work in plan_work(part, place)):
        try:
            reason = work.stale()
        except ConfigError as error:  # an earlier stage is not built yet
            reason = str(error).splitlines()[0]
        if reason is not None and (kept := why_kept(work.path)):
            reason = f"cannot be built: {kept}"
        results.append(StageResult(work.stage, work.role, work.path, reason is None, reason or ""))
    return results


def _perform(work: Work, notify: Notify, progress: Progress) -> StageResult:
    reason = work.stale()
    if reason is None:
        remove_leftovers(work.path)
        return StageResult(work.stage, work.role, work.path, fresh=True, reason="")
    notify(f"{work.stage}{' ' + work.role if work.role else ''}: {reason}")
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
    """Raise ConfigError if the run's repository is missing or older than its engines."""
    works = plan_work(make_plan(config, workspace), workspace)
    reason = works[-1].stale()
    require_planned_engines(works)
    if reason is not None:
        raise ConfigError(
            f"{workspace.repository} cannot be served: {reason}",
            hint=f"run `specpipe build --config {config.path}`",
        )
