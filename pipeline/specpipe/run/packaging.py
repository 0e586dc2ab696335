"""The job of stage 3: the model repository of a run's engines."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from specpipe.checkpoint.source import Source
from specpipe.checkpoint.tokenizer import tokenizer_files, write_tokenizer
from specpipe.config.files import find_file
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import ArtifactKind, Manifest, Workspace, digest_file, read_artifact
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError
from specpipe.engine.backend import Workshop
from specpipe.plan.opened import OpenedModels
from specpipe.plan.plan import Plan
from specpipe.repository.write import (
    FORMAT,
    RepositoryPlan,
    budget_options,
    repository_options,
    write_repository,
)
from specpipe.run.jobs import Job, Progress, StageName, StartedJob, require_artifact


@dataclass(frozen=True, eq=False)
class PackageJob(Job):
    """Makes the repository of a run."""

    stage: ClassVar[StageName] = "package"
    kind: ClassVar[ArtifactKind] = "repository"
    workspace: Workspace
    repository: RepositoryPlan
    source: Source | None  # the target of a run that serves it unchanged; None: not on this disk

    def inputs(self) -> Mapping[str, str]:
        """See `Job`."""
        plan = self.repository
        if not plan.serves_sources:
            for role in plan.requests:
                _require_same_weights(self.workspace, role)
        files = self._tokenizer_files()
        engines = {r: require_artifact(path, "compile") for r, path in plan.engines.items()}
        return {
            **{f"engine {role}": key for role, key in engines.items()},
            **repository_options(plan.config),
            **budget_options(plan),
            **{f"tokenizer {file.name}": digest_file(file) for file in files},
            "format": FORMAT,
        }

    def start(self, shop: Workshop) -> StartedJob:
        """See `Job`."""
        return StartedJob(self._write)

    def _tokenizer_files(self) -> list[Path]:
        if self.source is not None:
            return tokenizer_files(self.source)
        folder = self.repository.tokenizer
        return sorted(folder.iterdir()) if folder is not None else []

    def _write(self, out: Path, progress: Progress) -> Manifest:
        made = Manifest("repository", self.inputs())
        plan = replace(self.repository, key=made.key)
        with tempfile.TemporaryDirectory() as folder:
            if self.source is not None:
                write_tokenizer(self.source, plan.requests["target"].model, Path(folder))
                plan = replace(plan, tokenizer=Path(folder))
            write_repository(plan, out)
        return made


def package_job(plan: Plan, workspace: Workspace, opened: OpenedModels) -> PackageJob:
    """Return the job for a plan's repository."""
    config = plan.config
    repository = RepositoryPlan(
        config=config,
        engines={role: workspace.engine(role) for role in plan.requests},
        tokenizer=workspace.checkpoint("target") / "tokenizer",
        requests=plan.requests,
        release=plan.versions.get("tensorrt_llm", ""),
        home=Path(config.serving.repository_path or workspace.repository.resolve()),
        budgets=plan.memory.kv if plan.memory else {},
    )
    source = None
    if repository.serves_sources:
        repository = replace(repository, tokenizer=None)
        source = _served_source(config, opened)
    return PackageJob(None, workspace.repository, workspace, repository, source)


def _served_source(config: RunConfig, opened: OpenedModels) -> Source | None:
    here = find_file(config.target.model, config) is not None
    return opened.source(config, "target") if here else None


def _require_same_weights(workspace: Workspace, role: Role) -> None:
    engine = read_artifact(workspace.engine(role))
    checkpoint = require_artifact(workspace.checkpoint(role), "convert")
    if engine is not None and engine.manifest.inputs.get("checkpoint") != checkpoint:
        raise ConfigError(
            f"{workspace.engine(role)} is stale: it was compiled from other weights than "
            f"{workspace.checkpoint(role)} has now",
            hint="run `specpipe compile` or `specpipe build`",
        )
