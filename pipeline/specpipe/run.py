"""The stages in order: convert, compile, package. What is fresh is skipped, and said to be."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.artifacts import Workspace, locked
from specpipe.assembly import load_backend
from specpipe.building import Workshop
from specpipe.checkpoint.source import locate_model
from specpipe.config import RunConfig
from specpipe.contracts import Role
from specpipe.errors import ConfigError, Unsupported
from specpipe.locate import KEYS
from specpipe.planning import make_plan, require_buildable
from specpipe.publishing import put_back, remove_leftovers, staged, why_kept, write_publish
from specpipe.serve.address import free_address
from specpipe.serve.tritonserver import start_server
from specpipe.validate.gates import check_gates_known
from specpipe.work import (
    STAGES,
    StageName,
    Work,
    plan_work,
    require_planned_engines,
    require_room,
)

if TYPE_CHECKING:
    from specpipe.validate.report import Report

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
    works = plan_work(plan, workspace, Workshop(notify, runtime))
    wanted = [work for work in works if work.stage in stages]
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
                require_planned_engines(works)
            results.append(_perform(work, notify, progress))
        return results


def status(config: RunConfig, workspace: Workspace) -> list[StageResult]:
    """Say of every artifact of the run whether it is fresh, and if not, why; changes nothing."""
    results = []
    for work in plan_work(make_plan(config, workspace), workspace):
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


def validate_run(
    config: RunConfig,
    workspace: Workspace,
    url: str | None,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> "Report":
    """Validate a run against the server at `url`, or against one that is started for the time.

    Raises what `validate` and `start_server` raise.
    """
    from specpipe.validate.validate import load_prompts, validate

    check_gates_known(config.validate.gates, config.path)
    require_repository(config, workspace)
    prompts = load_prompts(config, workspace.repository / "preprocessing/1/tokenizer")
    model = locate_model(config.target.model, config, KEYS["target"])
    backend = load_backend(config.engine.backend)
    versions = dict(backend.versions(config.engine.tensorrt_llm))
    with contextlib.ExitStack() as stack:
        if url is None:
            notify("starting a server for the validation")
            log = workspace.reports / "tritonserver.log"
            address = free_address()
            stack.enter_context(start_server(workspace.repository, address, log))
            url = address.grpc
        return validate(config, workspace, url, model, prompts, versions, progress=progress)
