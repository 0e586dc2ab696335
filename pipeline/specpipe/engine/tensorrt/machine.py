"""Finds NVIDIA GPUs, their driver (by `nvidia-smi`) and installed TensorRT-LLM releases."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_QUERY = ("name", "compute_cap", "memory.total", "driver_version")
_TIMEOUT_S = 30
_VERSIONS = (
    "import importlib.metadata as m, json\n"
    "def v(n):\n"
    "    try: return m.version(n)\n"
    "    except m.PackageNotFoundError: return None\n"
    "print(json.dumps({n: v(n) for n in ('tensorrt_llm', 'tensorrt')}))"
)


@dataclass(frozen=True)
class FoundGpu:
    """One GPU as the driver reports it."""

    name: str
    sm: int  # compute capability without the dot
    memory_mib: int
    driver: str


def find_gpus() -> tuple[FoundGpu, ...]:
    """Return the GPUs that `nvidia-smi` lists; empty if it is missing or finds none."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.split(", ") for line in done.stdout.splitlines())
    return tuple(_gpu(row) for row in rows if len(row) == len(_QUERY))


def _gpu(row: list[str]) -> FoundGpu:
    name, capability, memory, driver = row
    sm = capability.replace(".", "")
    mib = memory if memory.isdigit() else "0"  # "[N/A]" for GPUs that share the host's memory
    return FoundGpu(name, int(sm) if sm.isdigit() else 0, int(mib), driver)


def find_program() -> Path | None:
    """Return where `trtllm-build` is; None if it is not on the path."""
    found = shutil.which("trtllm-build")
    return Path(found) if found else None


def installed_versions(program: Path) -> Mapping[str, str]:
    """Return the tensorrt_llm and tensorrt releases installed with `program`.

    The Python interpreter in the program's first line reads them without importing the packages. It
    can be another interpreter than this one. Missing packages are left out.
    """
    with program.open("rb") as file:
        first = file.readline(256)
    line = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    command = [*(line or [sys.executable]), "-c", _VERSIONS]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        versions = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
    return {name: version for name, version in versions.items() if version}
