"""The run that a command works on, and the facts that follow from its config."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

from specpipe.checkpoint.source import Source
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Medusa
from specpipe.core.artifacts import Workspace
from specpipe.core.contracts import Role
from specpipe.plan.make_plan import make_plan
from specpipe.plan.opened import OpenedModels
from specpipe.plan.plan import Plan
from specpipe.run.compilation import CompileJob
from specpipe.run.conversion import ConvertJob
from specpipe.run.heads import HeadsJob
from specpipe.run.jobs import Job
from specpipe.run.packaging import package_job
from specpipe.runtime.assembly import load_backend


@dataclass(frozen=True, eq=False)
class Run:
    """A config, its folders, and their models, plan and jobs: each is found once, when needed.

    It is for one command: a plan that was made stays as it is, whatever changes on the disk.
    """

    config: RunConfig
    workspace: Workspace
    opened: OpenedModels = field(default_factory=OpenedModels)
    planned: Plan | None = None  # the plan, if it was made with that of another run

    @cached_property
    def plan(self) -> Plan:
        """What a build would do; raises what `make_plan` raises."""
        return self.planned or make_plan(self.config, self.workspace, self.opened)

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """All artifacts of the run, in the order in which they must be made."""
        return tuple(_jobs(self.plan, self.workspace, self.opened))

    @cached_property
    def baseline(self) -> "Run | None":
        """The run without speculation that is built too; None if there is none."""
        plan = self.plan.baseline
        if plan is None:
            return None
        workspace = replace(self.workspace, name=plan.config.name)
        return Run(plan.config, workspace, self.opened, plan)

    @property
    def parts(self) -> "list[Run]":
        """This run, and its baseline if there is one."""
        return [self, self.baseline] if self.baseline else [self]

    def variant(self, config: RunConfig) -> "Run":
        """Return a run of the same models with other settings, in folders of its name."""
        return Run(config, replace(self.workspace, name=config.name), self.opened)

    def fetch(self, role: Role, notify: Callable[[str], None]) -> Source:
        """Return a model with its weights; fetches those that are not on this disk."""
        return self.opened.fetched(self.config, role, notify)


def _jobs(plan: Plan, workspace: Workspace, opened: OpenedModels) -> list[Job]:
    backend = load_backend(plan.config.engine.backend)
    memory = workspace.engines / ".digests.json"
    converted = [] if plan.config.engine.traits.serves_sources else list(plan.requests)
    heads = _heads_job(plan, workspace, opened)
    return [
        *([heads] if heads else []),
        *(
            ConvertJob(role, workspace.checkpoint(role), plan.config, opened, memory)
            for role in converted
        ),
        *(
            CompileJob(
                role,
                workspace.engine(role),
                request,
                backend,
                workspace.checkpoint(role),
                heads.path if heads else None,
            )
            for role, request in plan.requests.items()
        ),
        package_job(plan, workspace, opened),
    ]


def _heads_job(plan: Plan, workspace: Workspace, opened: OpenedModels) -> HeadsJob | None:
    """Return the job for Medusa heads of a target that is served as it is, if the run has some."""
    served = plan.config.engine.traits.serves_sources
    if not served or not isinstance(plan.config.speculation, Medusa) or "target" not in plan.models:
        return None
    memory = workspace.engines / ".digests.json"
    model, place = plan.models["target"], workspace.checkpoint("draft")
    return HeadsJob("draft", place, plan.config, model, opened, memory)
