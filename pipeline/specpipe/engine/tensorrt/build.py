"""Compiles a checkpoint with `trtllm-build`, here or in the container, and checks the engine."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.artifacts import digest_file
from specpipe.core.errors import StageFailed, Unsupported
from specpipe.core.processes import Program, last_lines, run_logged
from specpipe.engine.backend import BuildRequest, Command, Facts, Workshop
from specpipe.engine.tensorrt.built import require_as_planned
from specpipe.engine.tensorrt.container import in_container
from specpipe.engine.tensorrt.log import advise, explain_exit, phase
from specpipe.engine.tensorrt.machine import (
    FoundGpu,
    find_gpus,
    find_program,
    installed_versions,
)
from specpipe.engine.tensorrt.profiles import Profile


@dataclass(frozen=True)
class Site:
    """Where the compiler runs: its GPU, versions and container image."""

    gpu: FoundGpu
    versions: Mapping[str, str]
    image: str | None  # None: on this machine itself


def build_engine(
    request: BuildRequest, command: Command, out: Path, profile: Profile, shop: Workshop
) -> Facts:
    """Run the planned command, check the engine in `out`, and return the facts about it.

    The log is `<role>.build.log` in the parent folder of `out`. Kernel timings are kept in
    `.timing` next to the run's folder, for the next build on the same GPU model. Raises Unsupported
    if this machine cannot build the engine, StageFailed with the end of the log if the build fails.
    """
    site = survey(request, profile, shop)
    checkpoint = Path(command.options()["--checkpoint_dir"])
    cache = _timing_cache(out, profile, site.gpu)
    launch = _launch(
        _with_cache(command, out, cache), site, shop, [checkpoint], [out, cache.parent]
    )
    _run(launch, request.role, log_file(out, request.role), shop)
    require_as_planned(command, checkpoint, out, profile.tensorrt_llm)
    _keep_cache(out, cache)
    return _facts(request, command, site, out)


def log_file(out: Path, role: str) -> Path:
    """Return the log file of an engine's build, which is next to the engine's folder."""
    return out.parent / f"{role}.build.log"


def survey(request: BuildRequest, profile: Profile, shop: Workshop) -> Site:
    """Check that this machine can build; raises Unsupported with the next step if it cannot."""
    program = None if shop.runtime else find_program()
    if program is None and shop.runtime is None:
        raise Unsupported(
            "compile: trtllm-build is not installed on this machine; the checkpoints are converted",
            hint="run the same command with --in-container on a machine with the GPU and docker, "
            f"or run it in {profile.container}",
        )
    gpu = _require_gpu(request, shop)
    if program is None:
        return Site(gpu, {"tensorrt": profile.tensorrt}, profile.container)
    versions = installed_versions(program)
    found = versions.get("tensorrt_llm", profile.tensorrt_llm)
    if found != profile.tensorrt_llm:
        raise Unsupported(
            f"compile: TensorRT-LLM {found} is installed here, but the plan is for "
            f"{profile.tensorrt_llm}; an engine runs only in the release that built it",
            hint=f"build with --in-container ({profile.container}), or change engine.tensorrt_llm",
        )
    return Site(gpu, versions, None)


def _require_gpu(request: BuildRequest, shop: Workshop) -> FoundGpu:
    gpus = find_gpus()
    if not gpus:
        raise Unsupported(
            "compile: nvidia-smi finds no GPU here; an engine must be built on the GPU model that "
            "serves it",
            hint=f"run the same command on a machine with {request.engine.gpu}",
        )
    gpu = gpus[0]
    if request.sm not in (None, gpu.sm):
        raise Unsupported(
            f"compile: this machine has {gpu.name} (SM {gpu.sm}), but engine.gpu is "
            f"{request.engine.gpu} (SM {request.sm}); an engine runs only on the GPU model that "
            "built it",
            hint=f"change engine.gpu, or build on a machine with {request.engine.gpu}",
        )
    ranks = request.engine.parallel.world_size
    if len(gpus) < ranks:
        shop.notify(f"compile: {ranks} ranks are built on {len(gpus)} GPU, one after another")
    return gpu


def _timing_cache(out: Path, profile: Profile, gpu: FoundGpu) -> Path:
    kind = gpu.name.replace(" ", "-").replace("/", "-")
    return out.absolute().parents[1] / ".timing" / f"{profile.tensorrt_llm}_{kind}.cache"


def _with_cache(command: Command, out: Path, cache: Path) -> tuple[str, ...]:
    known = ("--input_timing_cache", str(cache)) if cache.is_file() else ()
    return (*command.argv, *known, "--output_timing_cache", str(out / cache.name))


def _keep_cache(out: Path, cache: Path) -> None:
    """Move the timings out of the engine's folder; a parallel build may do so at the same time."""
    written = out / cache.name
    if written.is_file():
        cache.parent.mkdir(parents=True, exist_ok=True)
        written.replace(cache)


def _launch(
    argv: tuple[str, ...],
    site: Site,
    shop: Workshop,
    read_only: list[Path],
    writable: list[Path],
) -> Program:
    if shop.runtime is None or site.image is None:
        return Program(argv)
    for folder in writable:
        folder.mkdir(parents=True, exist_ok=True)
    return in_container(
        argv,
        runtime=shop.runtime,
        image=site.image,
        name=f"specpipe-build-{os.getpid()}",
        read_only=read_only,
        writable=writable,
    )


def _run(launch: Program, role: str, log: Path, shop: Workshop) -> None:
    def heartbeat(seconds: float) -> None:
        far = phase(last_lines(log, 200)) or "running"
        shop.notify(f"compile {role}: {seconds:.0f} s, {far}; log: {log}")

    try:
        code = run_logged(launch, log, on_heartbeat=heartbeat)
    except FileNotFoundError as error:
        raise Unsupported(f"compile: {launch.argv[0]} is not installed on this machine") from error
    if code:
        lines = last_lines(log)
        shown = "".join(f"\n  | {line}" for line in lines)
        hint = advise(code, "\n".join(last_lines(log, 400)))
        raise StageFailed(
            f"compile: {launch.argv[0]} {explain_exit(code)}; the end of {log}:{shown}", hint=hint
        )


def _facts(request: BuildRequest, command: Command, site: Site, out: Path) -> Facts:
    places = {command.options()["--checkpoint_dir"]: f"checkpoints/{request.role}"}
    places[command.options()["--output_dir"]] = request.role
    return {
        "command": shlex.join(places.get(word, word) for word in command.argv),
        "image": site.image or "none: built on the machine itself",
        "gpu": site.gpu.name,
        "sm": site.gpu.sm,
        "driver": site.gpu.driver,
        **{f"built with {name}": version for name, version in sorted(site.versions.items())},
        **{f"sha256 {file.name}": digest_file(file) for file in sorted(out.glob("*.engine"))},
    }
