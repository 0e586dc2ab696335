"""Lists what this machine has: programs, packages, memory, ports, GPUs; judges nothing."""

import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.config.backends import BACKENDS
from specpipe.core.errors import Unsupported
from specpipe.core.machine import cpu_kinds, memory_bytes
from specpipe.engine.tensorrt.container import RUNTIMES
from specpipe.engine.tensorrt.machine import (
    FoundGpu,
    find_gpus,
    find_program,
    installed_versions,
)
from specpipe.serve.front_server import find_program as find_front
from specpipe.serve.tritonserver import find_server

OF_CPUS = ("openvino", "nvidia-pytriton")  # which a run on GPUs does without
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "tritonclient",
    "tokenizers",
    *OF_CPUS,
)
PORTS = (8000, 8001, 8002)


@dataclass(frozen=True)
class ContainerRuntime:
    """A program that runs containers."""

    name: str
    answers: bool  # the daemon, where there is one, is there for this user
    knows_nvidia: bool


@dataclass(frozen=True)
class Machine:
    """Everything that `doctor` looks at."""

    python: tuple[int, int, int]
    packages: Mapping[str, str | None]  # version; None: not installed
    server: str | None  # where a tritonserver is
    cpus: int
    cpu_kinds: tuple[str, ...]
    memory_bytes: int
    shared_memory_bytes: int  # free in /dev/shm
    disk_bytes: int  # free in the workspace
    busy_ports: tuple[int, ...]
    gpus: tuple[FoundGpu, ...]
    runtime: ContainerRuntime | None
    compiler: Path | None  # trtllm-build
    compiler_versions: Mapping[str, str]  # of tensorrt_llm and tensorrt next to it
    programs: Mapping[str, str | None]  # that serve runs in place of tritonserver: where they are


def _find_program(name: str) -> str | None:
    try:
        return str(find_front(name, os.environ))
    except Unsupported:
        return None


def look(workspace: Path, ports: Sequence[int] = PORTS) -> Machine:
    """Look at this machine; starts a few programs, changes nothing."""
    compiler = find_program()
    shm = Path("/dev/shm")
    return Machine(
        python=(sys.version_info.major, sys.version_info.minor, sys.version_info.micro),
        packages={name: _version(name) for name in PACKAGES},
        server=find_server(),
        cpus=os.cpu_count() or 0,
        cpu_kinds=cpu_kinds(),
        memory_bytes=memory_bytes(),
        shared_memory_bytes=shutil.disk_usage(shm).free if shm.is_dir() else 0,
        disk_bytes=shutil.disk_usage(_existing(workspace.absolute())).free,
        busy_ports=tuple(port for port in ports if _is_busy(port)),
        gpus=find_gpus(),
        runtime=find_container_runtime(),
        compiler=compiler,
        compiler_versions=installed_versions(compiler) if compiler else {},
        programs={
            traits.program: _find_program(traits.program)
            for traits in BACKENDS.values()
            if traits.program is not None
        },
    )


def find_container_runtime() -> ContainerRuntime | None:
    """Ask docker, else podman, whether it answers and whether it can hand out NVIDIA GPUs."""
    name = next((name for name in RUNTIMES if shutil.which(name)), None)
    if name is None:
        return None
    command = [name, "info", "--format", "{{json .}}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        facts = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return ContainerRuntime(name, answers=False, knows_nvidia=False)
    devices = [d for place in ("/etc/cdi", "/var/run/cdi") for d in Path(place).glob("nvidia*")]
    known = "nvidia" in (facts.get("Runtimes") or {})
    server_errors = bool(facts.get("ServerErrors"))
    return ContainerRuntime(name, answers=not server_errors, knows_nvidia=known or bool(devices))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _is_busy(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
