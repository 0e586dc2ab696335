"""`trtllm-build` inside the container that serves the engine: one argument list, no shell.

Only the compiler runs in the container. It sees the checkpoint (read-only), its output folder and
the folder of its timing cache. Each has the same path as outside, so the planned command is
unchanged. Nothing is installed, and its output files belong to the caller.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from specpipe.core.errors import Unsupported
from specpipe.core.processes import Program

RUNTIMES = ("docker", "podman")


def find_runtime() -> str:
    """Return the container program of this machine; raises Unsupported if there is none."""
    for name in RUNTIMES:
        if shutil.which(name):
            return name
    raise Unsupported(
        "compile: neither docker nor podman is installed on this machine",
        hint="install one with NVIDIA's container toolkit, or run specpipe in the container",
    )


def in_container(
    argv: Sequence[str],
    *,
    runtime: str,
    image: str,
    name: str,
    read_only: Sequence[Path],
    writable: Sequence[Path],
) -> Program:
    """Wrap a command so that it runs in `image` with every GPU; the container is called `name`."""
    gpus = ("--gpus", "all") if runtime == "docker" else ("--device", "nvidia.com/gpu=all")
    owner = () if runtime == "podman" else ("--user", f"{os.getuid()}:{os.getgid()}")
    keep = ("--userns", "keep-id") if runtime == "podman" else ()
    mounts = [
        *(f"type=bind,src={path},dst={path},readonly" for path in read_only),
        *(f"type=bind,src={path},dst={path}" for path in writable),
    ]
    return Program(
        (
            runtime,
            "run",
            "--rm",
            "--init",
            *("--name", name),
            *gpus,
            *owner,
            *keep,
            *("--network", "none"),  # the compiler needs no network
            *("--shm-size", "2g"),
            *("--ulimit", "memlock=-1"),
            *("--ulimit", "stack=67108864"),
            *("--env", "HOME=/tmp"),
            *(
                "--env",
                "USER=specpipe",
            ),  # torch needs a user name, and the caller's id has none here
            *(word for mount in mounts for word in ("--mount", mount)),
            *("--workdir", "/tmp"),
            image,  # its entrypoint is kept: it prepares the libraries for the host's driver
            *argv,
        ),
        abort=(runtime, "rm", "--force", name),
    )
