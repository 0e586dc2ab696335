"""`specpipe doctor`: what this machine has, and what a run would miss."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from specpipe.config import RunConfig
from specpipe.serve.tritonserver import find_server

_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "tritonclient",
    "tokenizers",
    "openvino",
    "nvidia-pytriton",
    "tensorrt-llm",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    found: str  # what is there, or "missing"
    problem: str | None = None  # why the run cannot work, and what to do


def examine(config: RunConfig | None) -> list[Finding]:
    """Look at this machine; with a config, name what that run needs and does not have."""
    backend = config.engine.backend if config else None
    findings = [_python(), *(_package(name, backend) for name in _PACKAGES)]
    findings += [
        _server(backend),
        _numpy(backend),
        _cpu(),
        _shared_memory(),
        _disk(),
        _gpu(backend),
    ]
    return findings


def _python() -> Finding:
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    problem = None if good else "specpipe needs Python 3.10 to 3.13"
    return Finding("python", platform.python_version(), problem)


def _package(name: str, backend: str | None) -> Finding:
    needed_by = {"openvino": "openvino", "tensorrt-llm": "tensorrt"}
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        needed = name not in needed_by and name != "nvidia-pytriton"
        needed = needed or (backend is not None and needed_by.get(name) == backend)
        return Finding(name, "missing", f"pip install {name}" if needed else None)


def _server(backend: str | None) -> Finding:
    server = find_server()
    problem = (
        "pip install 'specpipe-trtllm[cpu]'" if server is None and backend == "openvino" else None
    )
    return Finding("tritonserver", server or "missing", problem)


def _numpy(backend: str | None) -> Finding:
    version = importlib.metadata.version("numpy")
    old = int(version.split(".")[0]) < 2
    bad = not old and backend == "openvino"
    return Finding(
        "numpy for Triton's Python backend",
        "ok" if old else f"{version} is too new",
        "pip install 'numpy<2': with numpy 2 answers arrive empty" if bad else None,
    )


def _cpu() -> Finding:
    flags = _read("/proc/cpuinfo")
    kinds = [
        name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx_vnni") if name in flags
    ]
    return Finding("cpu", f"{os.cpu_count()} CPUs, {' '.join(kinds) or platform.machine()}")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    problem = None if free > 64 * 2**20 else "Triton needs shared memory: docker run --shm-size=1g"
    return Finding("/dev/shm", _size(free), problem)


def _disk() -> Finding:
    return Finding("free disk here", _size(shutil.disk_usage(Path.cwd()).free))


def _gpu(backend: str | None) -> Finding:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return Finding("gpu", "; ".join(done.stdout.strip().splitlines()))
    except (OSError, subprocess.SubprocessError):
        problem = (
            "backend tensorrt needs an NVIDIA GPU and its driver" if backend == "tensorrt" else None
        )
        return Finding("gpu", "none", problem)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
