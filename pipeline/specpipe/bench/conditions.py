"""The conditions on which the figures of a benchmark depend: machine, versions and commit."""

import platform
from collections.abc import Sequence
from pathlib import Path

from specpipe import __version__
from specpipe.config.run_config import RunConfig
from specpipe.core.commit import find_commit
from specpipe.core.machine import describe_machine
from specpipe.engine.tensorrt.machine import find_gpus
from specpipe.runtime.assembly import load_backend
from specpipe.serve.tritonserver import find_server


def conditions(runs: Sequence[RunConfig], load: str, url: str | None = None) -> dict[str, str]:
    """Return the conditions of a benchmark of `runs` on this machine; `load` describes the work.

    `url` is that of a server that runs already; machine and versions are then the client's.
    Raises Unsupported if a package of a run's backend is not installed.
    """
    found = {"load": load, "machine": describe_machine(), "versions": _versions(runs)}
    if gpus := [gpu.name for gpu in find_gpus()]:
        found["GPUs"] = ", ".join(gpus)
    if url is not None:
        found["server"] = f"{url}, which may run elsewhere; the rest describes the client"
    commit = find_commit(Path(__file__).parent)
    return {**found, "specpipe": f"{__version__}, commit {commit}" if commit else __version__}


def _versions(runs: Sequence[RunConfig]) -> str:
    found = {"python": platform.python_version()}
    for run in runs:
        found |= load_backend(run.engine.backend).versions(run.engine.tensorrt_llm)
    found.pop("format", None)  # of engine folders
    named = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
    server = find_server()
    return f"{named}, {server}" if server else named
