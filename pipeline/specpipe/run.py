"""The stages in order: convert, compile, package. What is fresh is skipped, and said to be."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from specpipe.artifacts import (
    Kind,
    Manifest,
    Workspace,
    describe_changes,
    digest_file,
    locked,
    read_artifact,
    remove_leftovers,
    staged,
    why_stale,
    write_publish,
)
from specpipe.assembly import load_backend
from specpipe.checkpoint.convert import checkpoint_inputs, write_checkpoint
from specpipe.checkpoint.medusa import HeadsSource
from specpipe.checkpoint.quantize import quantizing_of
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.source import locate_model, open_source
from specpipe.config import RunConfig, require_file
from specpipe.contracts import HERE, BuildRequest, Command, Facts, Role, Workshop
from specpipe.errors import ConfigError, Unsupported
from specpipe.locate import KEYS, locate_heads
from specpipe.plan.plan import Plan
from specpipe.planning import make_plan, require_buildable
from specpipe.prompts import read_prompts
from specpipe.repository.write import (
    FORMAT,
    RepositoryPlan,
    budget_options,
    repository_options,
    write_repository,
)
from specpipe.serve.address import free_address
from specpipe.serve.tritonserver import start_server
from specpipe.validate.gates import check_gates_known

if TYPE_CHECKING:
    from specpipe.validate.report import Report

StageName = Literal["convert", "compile", "package"]
STAGES: tuple[StageName, ...] = ("convert", "compile", "package")
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


@dataclass(frozen=True)
class Work:
    """One artifact to make: where, from what, and how."""

    stage: StageName
    role: Role | None
    kind: Kind
    path: Path
    inputs: Callable[[], Mapping[str, str]]
    write: Callable[[Path, Progress], Facts | None]  # what the manifest is to remember, if anything
    resumable: bool = False  # `write` goes on with a folder that it left unfinished

    def stale(self) -> str | None:
        """Say why the artifact must be made; None if it is fresh."""
        return why_stale(self.path, self.kind, self.inputs())


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

    Raises Unsupported with every reason if the plan is refused, StageFailed or ConfigError if a
    stage cannot finish; whatever was finished before stays and is reused by the next build.
    """
    plan = make_plan(config, workspace)
    require_buildable(plan)
    if runtime and not plan.commands:
        raise Unsupported(
            f"backend {config.engine.backend} compiles in this process, not in a container",
            hint="leave --in-container out",
        )
    with locked(workspace.engines, notify):
        results = []
        works = plan_work(plan, workspace, Workshop(notify, runtime))
        for work in (work for work in works if work.stage in stages):
            if work.stage == "package":
                _require_planned_engines(works)
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
        results.append(StageResult(work.stage, work.role, work.path, reason is None, reason or ""))
    return results


def plan_work(plan: Plan, workspace: Workspace, shop: Workshop = HERE) -> list[Work]:
    """Return every artifact of the run, in the order in which they must be made."""
    config, roles = plan.config, list(plan.requests)
    converted = [] if load_backend(config.engine.backend).serves_sources else roles
    return [
        *(_convert(config, workspace, role) for role in converted),
        *(_compile(config, workspace, request, shop) for request in plan.requests.values()),
        _package(plan, workspace),
    ]


def _convert(config: RunConfig, workspace: Workspace, role: Role) -> Work:
    memory = workspace.engines / ".digests.json"
    dtype = config.engine.dtype

    def source_path() -> Path:
        return locate_model(config.models()[role], config, KEYS[role])

    def heads() -> HeadsSource | None:
        return locate_heads(config, role)

    def quantizing() -> Quantizing:
        return quantizing_of(config.engine, calibration_prompts(config))

    def write(out: Path, progress: Progress) -> None:
        source, parallel = open_source(source_path()), config.engine.parallel
        write_checkpoint(source, out, dtype, progress, heads(), quantizing(), parallel)

    def inputs() -> dict[str, str]:
        source, parallel = open_source(source_path()), config.engine.parallel
        return checkpoint_inputs(source, dtype, memory, heads(), quantizing(), parallel)

    return Work(
        "convert",
        role,
        "checkpoint",
        workspace.checkpoint(role),
        inputs,
        write,
        resumable=True,
    )


def calibration_prompts(config: RunConfig) -> list[str]:
    """Return the texts that quantisation is calibrated with: all prompts of the validation."""
    text = config.validate.prompts
    return read_prompts(require_file(text, config, "validate.prompts") if text else None)


def _compile(
    config: RunConfig, workspace: Workspace, request: BuildRequest, shop: Workshop
) -> Work:
    checkpoint = workspace.checkpoint(request.role)
    backend = load_backend(config.engine.backend)

    def inputs() -> dict[str, str]:
        return {
            **backend.files(request),
            **({} if backend.serves_sources else {"checkpoint": _key(checkpoint, "convert")}),
            "quantization": request.quantization,
            "kv_cache_quantization": request.kv_cache_quantization,
            "max_batch_size": str(request.max_batch_size),
            "max_input_len": str(request.max_input_len),
            "max_seq_len": str(request.max_seq_len),
            **({"gpu": request.gpu} if request.gpu else {}),
            **_options(backend.commands(request, Path("checkpoint"), Path("engine"))),
            **backend.versions(request.release),
        }

    return Work(
        "compile",
        request.role,
        "engine",
        workspace.engine(request.role),
        inputs,
        lambda out, progress: backend.build(request, checkpoint, out, shop),
    )


def _options(commands: list[Command]) -> dict[str, str]:
    """Return what the planned programs are told, but for where files are and how many work."""
    told = {name: value for command in commands for name, value in command.options().items()}
    places = ("--checkpoint_dir", "--output_dir", "--workers")
    return {name: value for name, value in told.items() if name not in places}


def _package(plan: Plan, workspace: Workspace) -> Work:
    config, roles = plan.config, list(plan.requests)
    engines = {role: workspace.engine(role) for role in roles}
    serves_sources = load_backend(config.engine.backend).serves_sources
    tokenizer = None if serves_sources else workspace.checkpoint("target") / "tokenizer"
    repository = RepositoryPlan(
        config=config,
        engines=engines,
        tokenizer=tokenizer,
        requests=plan.requests,
        release=plan.versions.get("tensorrt_llm", ""),
        home=Path(config.serving.repository_path or workspace.repository.resolve()),
        budgets=plan.memory.kv if plan.memory else {},
    )

    def inputs() -> dict[str, str]:
        for role in [] if serves_sources else roles:
            _require_same_weights(workspace, role)
        files = sorted(tokenizer.iterdir()) if tokenizer is not None else []
        return {
            **{f"engine {role}": _key(path, "compile") for role, path in engines.items()},
            **repository_options(config),
            **budget_options(repository),
            **{f"tokenizer {f.name}": digest_file(f) for f in files},
            "format": FORMAT,
        }

    return Work(
        "package",
        None,
        "repository",
        workspace.repository,
        inputs,
        lambda out, progress: write_repository(repository, out),
    )


def _key(path: Path, stage: StageName) -> str:
    """Return the key of an earlier stage's artifact; raises ConfigError if there is none."""
    artifact = read_artifact(path)
    if artifact is None:
        raise ConfigError(
            f"{path} is not built", hint=f"run `specpipe {stage}` or `specpipe build`"
        )
    return artifact.manifest.key


def _require_same_weights(workspace: Workspace, role: Role) -> None:
    engine = read_artifact(workspace.engine(role))
    checkpoint = _key(workspace.checkpoint(role), "convert")
    if engine is not None and engine.manifest.inputs.get("checkpoint") != checkpoint:
        raise ConfigError(
            f"{workspace.engine(role)} was compiled from other weights than those in "
            f"{workspace.checkpoint(role)}",
            hint="run `specpipe compile` or `specpipe build`",
        )


def _require_planned_engines(works: list[Work]) -> None:
    """Raise ConfigError if an engine that is there was compiled for other options or another GPU.

    Missing engines and other weights are the business of the package itself.
    """
    for work in works:
        engine = read_artifact(work.path) if work.stage == "compile" else None
        if engine is None:
            continue
        built, asked = ({**engine.manifest.inputs}, {**work.inputs()})
        for values in (built, asked):  # the LLM API has no checkpoint
            values.pop("checkpoint", None)
        changes = describe_changes(built, asked)
        if changes:
            raise ConfigError(
                f"{work.path} was not compiled for what the config asks now: {changes}",
                hint="run `specpipe compile` or `specpipe build`",
            )


def _perform(work: Work, notify: Notify, progress: Progress) -> StageResult:
    reason = work.stale()
    if reason is None:
        return StageResult(work.stage, work.role, work.path, fresh=True, reason="")
    notify(f"{work.stage}{' ' + work.role if work.role else ''}: {reason}")
    began = time.perf_counter()
    resume = Manifest(work.kind, work.inputs()).key if work.resumable else None
    remove_leftovers(work.path, resume)
    with staged(work.path, work.stage, resume) as temporary:
        facts = work.write(temporary, progress) or {}
        write_publish(temporary, work.path, Manifest(work.kind, work.inputs(), facts))
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
    _require_planned_engines(works)
    if reason is not None:
        raise ConfigError(
            f"{workspace.repository} cannot be served: {reason}",
            hint=f"run `specpipe build --config {config.path}`",
        )


def chat_template(config: RunConfig, workspace: Workspace) -> tuple[str, str]:
    """Return what the run's model wants before and after a user's text.

    Raises ConfigError if the repository is not built.
    """
    file = workspace.repository / "preprocessing/1/tokenizer/tokenizer_facts.json"
    try:
        facts = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(
            f"{workspace.repository} is not built",
            hint=f"run `specpipe build --config {config.path}`",
        ) from error
    return facts["chat_prefix"], facts["chat_suffix"]


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
    from specpipe.validate.validate import validate

    check_gates_known(config.validate.gates, config.path)
    require_repository(config, workspace)
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
        return validate(config, workspace, url, model, versions, progress=progress)
