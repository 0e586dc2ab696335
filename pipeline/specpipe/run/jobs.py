"""The artifacts of a run: their paths, the inputs that decide their bytes, and how to make them."""

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import or_
from pathlib import Path
from typing import Literal

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.finding import fetch_source, find_source
from specpipe.checkpoint.quantize import quantizing_of
from specpipe.checkpoint.reading import digest_content
from specpipe.checkpoint.source import Origin, Source, open_source
from specpipe.checkpoint.tokenizer import tokenizer_files, write_tokenizer
from specpipe.config.run_config import RunConfig, find_file, require_file
from specpipe.core.artifacts import (
    ArtifactKind,
    Manifest,
    Workspace,
    describe_changes,
    digest_file,
    digest_json,
    read_artifact,
    why_stale,
)
from specpipe.core.backend import HERE, BuildRequest, Command, Workshop
from specpipe.core.contracts import Role
from specpipe.core.digests import Stamp, remember, remembered
from specpipe.core.errors import ConfigError
from specpipe.core.prompts import read_prompts
from specpipe.core.publishing import require_replaceable, why_kept
from specpipe.plan.plan import Plan
from specpipe.plan.resolve import resolve_drafter
from specpipe.repository.write import (
    FORMAT,
    RepositoryPlan,
    budget_options,
    repository_options,
    write_repository,
)
from specpipe.runtime.assembly import load_backend

StageName = Literal["convert", "compile", "package"]
STAGES: tuple[StageName, ...] = ("convert", "compile", "package")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """One artifact to make: its path, its inputs, and the function that writes it."""

    stage: StageName
    role: Role | None
    kind: ArtifactKind
    path: Path
    inputs: Callable[[], Mapping[str, str]]
    write: Callable[[Path, Progress], Manifest]  # fills a folder, returns the manifest
    begun: Callable[[], str] | None = None  # key of a folder in which `write` can resume

    def stale(self) -> str | None:
        """Return why the artifact must be made; None if it is up to date."""
        return why_stale(self.path, self.kind, self.inputs)


def plans_of(plan: Plan, workspace: Workspace) -> list[tuple[Plan, Workspace]]:
    """Return a plan and that of its baseline, if it has one, each with its workspace."""
    if plan.baseline is None:
        return [(plan, workspace)]
    other = replace(workspace, name=plan.baseline.config.name)
    return [(plan, workspace), (plan.baseline, other)]


def plan_jobs(plan: Plan, workspace: Workspace, shop: Workshop = HERE) -> list[Job]:
    """Return every artifact of the run, in the order in which they must be made."""
    config, roles = plan.config, list(plan.requests)
    converted = [] if load_backend(config.engine.backend).serves_sources else roles
    return [
        *(_convert(config, workspace, role, shop) for role in converted),
        *(_compile(config, workspace, request, shop) for request in plan.requests.values()),
        _package(plan, workspace),
    ]


def require_room(works: Sequence[Job]) -> None:
    """Raise ConfigError if files that specpipe did not write are where an artifact must go.

    An artifact's folder that also holds other files is refused only if it must be replaced, which
    means that the artifact or one of its inputs is stale.
    """
    kept = [work for work in works if why_kept(work.path)]
    if kept:
        stale = list(itertools.accumulate(map(_is_stale, works), or_))
        require_replaceable(
            [w.path for w, old in zip(works, stale, strict=True) if old and w in kept]
        )


def _is_stale(work: Job) -> bool:
    try:
        return work.stale() is not None
    except ConfigError:  # one of its inputs is not built
        return True


def _convert(config: RunConfig, workspace: Workspace, role: Role, shop: Workshop) -> Job:
    memory, path = workspace.engines / ".digests.json", workspace.checkpoint(role)

    @cache
    def found() -> Source:
        return find_source(config, role)

    @cache  # `begun` and `write` must see the same state of the files
    def fetched() -> tuple[Conversion, Mapping[Path, Stamp]]:
        conversion = _conversion(config, role, fetch_source(config, role, shop.notify))
        return conversion, conversion.state()

    def inputs() -> dict[str, str]:
        source = found()

        def digest(file: Path) -> str:
            if source.origin and file.name in source.missing:
                return _noted_digest(path, source.origin, file.name)
            return remembered(file, memory, digest_content)

        return _conversion(config, role, source).inputs(digest)

    def begun() -> str:
        conversion, state = fetched()
        stamps = {str(path.absolute()): seen.text for path, seen in state.items()}
        return digest_json([stamps, conversion.options()])

    def write(out: Path, progress: Progress) -> Manifest:
        conversion, state = fetched()
        converted = conversion.write(out, progress, state)
        for remark in converted.remarks:
            shop.notify(f"convert {role}: {remark}")
        digests = converted.digests
        remember(memory, state, digests)
        asked = conversion.inputs(digests.__getitem__)
        return Manifest("checkpoint", asked, _origin_facts(conversion.source))

    return Job("convert", role, "checkpoint", path, inputs, write, begun)


def _conversion(config: RunConfig, role: Role, source: Source) -> Conversion:
    quantizing = quantizing_of(config.engine, calibration_prompts(config))
    drafter = resolve_drafter(config, role)
    return Conversion(source, config.engine.dtype, drafter, quantizing, config.engine.parallel)


def _origin_facts(source: Source) -> dict[str, str]:
    """Return the manifest's facts about a model that came from the hub."""
    origin = source.origin
    return {"model": origin.model, "commit": origin.commit} if origin else {}


def _noted_digest(path: Path, origin: Origin, name: str) -> str:
    """Return the digest of weights that are not on this disk, if they were converted before.

    A commit never changes. So a checkpoint at `path` that was made of it has the digests.
    """
    artifact = read_artifact(path)
    made_of = artifact.manifest.facts if artifact else {}
    if artifact and (made_of.get("model"), made_of.get("commit")) == (origin.model, origin.commit):
        return artifact.manifest.inputs.get(f"source {name}", "to be fetched")
    return "to be fetched"


def calibration_prompts(config: RunConfig) -> list[str]:
    """Return the texts for the calibration of a quantization: all prompts of the validation."""
    text = config.validate.prompts
    return read_prompts(require_file(text, config, "validate.prompts") if text else None)


def _compile(config: RunConfig, workspace: Workspace, request: BuildRequest, shop: Workshop) -> Job:
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
            **(
                {"draft_vocab_size": str(request.draft_vocab_size)}
                if request.draft_vocab_size
                else {}
            ),
            **_options(backend.commands(request, Path("checkpoint"), Path("engine"))),
            **backend.versions(request.release),
        }

    def write(out: Path, progress: Progress) -> Manifest:
        asked = inputs()
        return Manifest("engine", asked, backend.build(request, checkpoint, out, shop))

    return Job(
        "compile",
        request.role,
        "engine",
        workspace.engine(request.role),
        inputs,
        write,
    )


def _options(commands: list[Command]) -> dict[str, str]:
    """Return the options of the planned programs, except paths and the number of workers."""
    told = {name: value for command in commands for name, value in command.options().items()}
    places = ("--checkpoint_dir", "--output_dir", "--workers")
    return {name: value for name, value in told.items() if name not in places}


def _package(plan: Plan, workspace: Workspace) -> Job:
    config, roles = plan.config, list(plan.requests)
    engines = {role: workspace.engine(role) for role in roles}
    serves_sources = load_backend(config.engine.backend).serves_sources
    source = _served_source(config) if serves_sources else None
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
        if source is not None:
            files = tokenizer_files(source)
        else:
            files = sorted(tokenizer.iterdir()) if tokenizer is not None else []
        return {
            **{f"engine {role}": _key(path, "compile") for role, path in engines.items()},
            **repository_options(config),
            **budget_options(repository),
            **{f"tokenizer {f.name}": digest_file(f) for f in files},
            "format": FORMAT,
        }

    def write(out: Path, progress: Progress) -> Manifest:
        made = Manifest("repository", inputs())
        with tempfile.TemporaryDirectory() as folder:
            whole = replace(repository, key=made.key)
            if source is not None:
                write_tokenizer(source, plan.requests["target"].model, Path(folder))
                whole = replace(whole, tokenizer=Path(folder))
            write_repository(whole, out)
        return made

    return Job(
        "package",
        None,
        "repository",
        workspace.repository,
        inputs,
        write,
    )


def _served_source(config: RunConfig) -> Source | None:
    """Return the target of a run that serves it unchanged; None if it is not on this disk."""
    path = find_file(config.target.model, config)
    return None if path is None else open_source(path)


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
            f"{workspace.engine(role)} is stale: it was compiled from other weights than "
            f"{workspace.checkpoint(role)} has now",
            hint="run `specpipe compile` or `specpipe build`",
        )


def require_planned_engines(works: list[Job]) -> None:
    """Raise ConfigError if an engine was compiled with other options or for another GPU.

    The package stage itself reports missing engines and changed weights.
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
                f"{work.path} is stale: it was compiled with different settings than the config "
                f"has now: {changes}",
                hint="run `specpipe build`",
            )
