"""Checks a repository before a server starts: complete, and with engines for this machine."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from specpipe.core.artifacts import Artifact, read_artifact
from specpipe.core.endpoint import Model
from specpipe.core.errors import ConfigError, Rejection, Unsupported
from specpipe.engine.fronts.front import SCRIPT
from specpipe.engine.tensorrt.machine import FoundGpu, find_gpus
from specpipe.engine.vllm.triton_model import MODEL as VLLM_MODEL
from specpipe.engine.vllm.triton_model import TRITON_BACKEND
from specpipe.repository.description import DESCRIPTION, read_endpoint
from specpipe.repository.render import parse


def require_triton(repository: Path) -> None:
    """Raise Unsupported for files that the tritonserver of this environment cannot serve."""
    script = repository / SCRIPT
    if (repository / DESCRIPTION).exists():
        raise Unsupported(
            f"{repository} is not served by Triton (serving.front), so specpipe starts no server",
            hint=f"start {script} where its program is installed, or `specpipe package "
            "--deploy`, and give its address: --url http://HOST:8000",
        )
    config = repository / VLLM_MODEL / "config.pbtxt"
    if config.exists() and parse(config.read_text(encoding="utf-8")).backend == TRITON_BACKEND:
        raise Unsupported(
            f"{repository} is for Triton's vllm backend, which the tritonserver of specpipe lacks",
            hint="serve the repository in NVIDIA's container tritonserver:YY.MM-vllm-python-py3 "
            "and give its address, --url HOST:8001, or set serving.front: vllm_serve",
        )


def require_models(repository: Path) -> None:
    """Raise ConfigError if a folder is no model repository: Triton would serve nothing, or less."""
    if not any(repository.glob("*/config.pbtxt")):
        raise ConfigError(
            f"{repository} is no model repository: none of its folders has a config.pbtxt",
            hint="give the folder that `specpipe package` wrote, triton_repo/<name>",
        )


def find_front(repository: Path) -> Model | None:
    """Return the model of a repository that users call; None if the repository does not say."""
    try:
        return read_endpoint(repository).text
    except ConfigError:
        return None


def require_same_machine(repository: Path) -> None:
    """Raise Unsupported, with every reason, if an engine in `repository` cannot run here.

    Engines without a GPU in their manifest run anywhere.
    """
    engines = [engine for engine in find_engines(repository) if "sm" in engine.manifest.facts]
    if not engines:
        return
    gpus, release = find_gpus(), _installed_release()
    found = [r for engine in engines for r in check_engine(engine, gpus, release)]
    if found:
        listed = "\n".join(f"  - {rejection}" for rejection in dict.fromkeys(found))
        raise Unsupported(f"serve: {repository} cannot be served here:\n{listed}")


def find_engines(repository: Path) -> list[Artifact]:
    """Return every engine that lies in a packaged repository."""
    folders = sorted(file.parent for file in repository.glob("*/1/**/specpipe.json"))
    artifacts = [read_artifact(folder) for folder in folders]
    return [a for a in artifacts if a is not None and a.manifest.kind == "engine"]


def check_engine(
    engine: Artifact, gpus: Sequence[FoundGpu], release: str | None
) -> list[Rejection]:
    """Return every reason why these GPUs, with this release, cannot run an engine."""
    facts, name = engine.manifest.facts, f"the engine of {engine.path.parents[1].name}"
    ranks = sum(file.endswith(".engine") for file in engine.manifest.files)
    if not gpus:
        reason = f"{name} needs {ranks} {facts['gpu']}, and nvidia-smi finds no GPU"
        return [Rejection(reason, "serve it on a machine with that GPU")]
    found = []
    if gpus[0].sm != facts["sm"]:
        reason = (
            f"{name} was built on {facts['gpu']} (SM {facts['sm']}), this machine has "
            f"{gpus[0].name} (SM {gpus[0].sm})"
        )
        found.append(Rejection(reason, "set engine.gpu to what is here and build again"))
    if len(gpus) < ranks:
        reason = f"{name} has {ranks} ranks, this machine {len(gpus)} GPUs"
        found.append(Rejection(reason, "use a larger machine, or a lower engine.tp_size"))
    built_by = engine.manifest.inputs.get("tensorrt_llm")
    if release is not None and release != built_by:
        reason = f"{name} was built by TensorRT-LLM {built_by}, {release} is installed"
        found.append(Rejection(reason, f"serve it in {engine.manifest.inputs.get('container')}"))
    return found


def _installed_release() -> str | None:
    for name in ("tensorrt_llm", "tensorrt-llm"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
