"""The command that starts Triton with TensorRT-LLM's engines in upstream's container.

One process, or mpirun with one a rank: see `repository.placement`. Follows upstream's
`scripts/launch_triton_server.py`; nothing here was run on a GPU.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.tensorrt.machine import find_gpus
from specpipe.repository.placement import Placement
from specpipe.repository.render import parse, to_text
from specpipe.repository.tokenizer_info import INFO, INFO_PATH

SERVER = Path("/opt/tritonserver/bin/tritonserver")  # in the container
LOADING_SECONDS = 1800.0  # engines of a hundred gigabytes come from a disk
# For models to unload. Triton does not wait for the answers of decoupled models, `keep` does; and
# Triton 2.51 waits in vain for a model whose client disconnected as its answer ended.
EXIT_SECONDS = 5


@dataclass(frozen=True)
class ServerLaunch:
    """A program and what its environment has in addition to specpipe's."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def gpu_launch(
    repository: Path, placement: Placement, flags: Sequence[str], region: str, folder: Path
) -> ServerLaunch:
    """Return how to serve a repository of TensorRT-LLM engines on this machine.

    `flags` say where the server listens and what it demands; `folder` is for files that live as
    long as the server. Raises Unsupported without a GPU or without Triton's tensorrtllm backend,
    ConfigError if there are too few GPUs or no engines.
    """
    server = require_gpu_server(repository, placement)
    served = write_view(repository, placement, folder / "repository")
    return ServerLaunch(
        launch_command(server, served, placement, flags, region), environment(placement)
    )


def require_gpu_server(repository: Path, placement: Placement) -> Path:
    """Return the tritonserver that can serve the repository; raises as `gpu_launch`."""
    found = shutil.which("tritonserver")
    server = Path(found) if found else SERVER
    backend = server.resolve().parents[1] / "backends/tensorrtllm"
    gpus = len(find_gpus())
    if gpus == 0 or not backend.is_dir():
        missing = "this machine has no NVIDIA GPU" if gpus == 0 else "Triton's backend is not here"
        raise Unsupported(
            f"{repository} is for GPUs with TensorRT-LLM {placement.release}, and {missing}",
            hint="run `specpipe serve` on a GPU machine in the container that `specpipe plan` "
            "names, or use backend: openvino here",
        )
    if gpus < placement.gpus:
        raise ConfigError(
            f"{repository} needs {placement.gpus} GPUs, and this machine has {gpus}",
            hint="lower engine.tp_size or engine.pp_size, and build again",
        )
    if _needs_mpi(placement) and shutil.which("mpirun") is None:
        raise Unsupported(
            "mpirun is not installed, which engines of several ranks are started with",
            hint="run `specpipe serve` in the container that `specpipe plan` names",
        )
    return server


def write_view(repository: Path, placement: Placement, view: Path) -> Path:
    """Return the repository to serve: itself, or a view of it if it was moved.

    Models name their engine, and what xgrammar reads, by absolute paths. Where those are others
    than the repository's own, the view has the same models with the right paths. Raises ConfigError
    if an engine is missing.
    """
    moved = {}
    for model in placement.models:
        file = repository / model / "config.pbtxt"
        config = parse(file.read_text(encoding="utf-8"))
        named = config.parameters["gpt_model_path"].string_value
        engine = repository / model / "1" / Path(named).name
        if named and not engine.is_dir():
            raise ConfigError(
                f"{file} names the engine {named}, and {engine} is not there",
                hint="run `specpipe package` again, and copy the whole repository",
            )
        if named and Path(named) != engine:
            config.parameters["gpt_model_path"].string_value = str(engine)
            if INFO_PATH in config.parameters and config.parameters[INFO_PATH].string_value:
                config.parameters[INFO_PATH].string_value = str(engine.with_name(INFO))
            moved[model] = to_text(config)
    if not moved:
        return repository
    for file in sorted(repository.glob("*/config.pbtxt")):
        model = file.parent.name
        (view / model).mkdir(parents=True)
        (view / model / "1").symlink_to(file.parent / "1", target_is_directory=True)
        text = moved.get(model) or file.read_text(encoding="utf-8")
        (view / model / "config.pbtxt").write_text(text, encoding="utf-8")
    return view


def _needs_mpi(placement: Placement) -> bool:
    return placement.orchestrator or placement.world_size > 1


def launch_command(
    server: Path, repository: Path, placement: Placement, flags: Sequence[str], region: str
) -> tuple[str, ...]:
    """Return the command line: a tritonserver, or mpirun with one for every rank."""
    ranks = [
        (str(server), *_server_flags(repository, placement, flags, region, rank))
        for rank in range(placement.world_size)
    ]
    if not _needs_mpi(placement):
        return ranks[0]
    parts: list[str] = ["mpirun", "--allow-run-as-root"]
    for number, rank in enumerate(ranks):
        parts += [":"] if number else []
        parts += ["-n", "1", *rank]
    return tuple(parts)


def _server_flags(
    repository: Path, placement: Placement, listening: Sequence[str], region: str, rank: int
) -> list[str]:
    """Return the flags of one rank; all but the first load the engines' models only."""
    flags = [
        f"--model-repository={repository}",
        *listening,
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={region}{rank}_",
    ]
    if rank:
        flags += ["--model-control-mode=explicit"]
        flags += [f"--load-model={model}" for model in placement.models]
    if placement.orchestrator and placement.spawns:  # its workers need the memory
        flags += ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"]
        flags += [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(placement.gpus)]
    return flags


def environment(placement: Placement) -> tuple[tuple[str, str], ...]:
    """Return the variables that tell the backend which mode it is in."""
    if not placement.orchestrator:
        return ()
    spawns = "1" if placement.spawns else "0"
    return (("TRTLLM_ORCHESTRATOR", "1"), ("TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES", spawns))


def whole_environment(launch: ServerLaunch) -> dict[str, str]:
    """Return the environment of the program."""
    return {**os.environ, **dict(launch.env)}
