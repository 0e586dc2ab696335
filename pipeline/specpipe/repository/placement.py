"""Place the engines of TensorRT-LLM on processes and GPUs. Pure functions.

Leader mode: mpirun starts one tritonserver per rank, and rank 0 serves. Orchestrator mode: one
tritonserver drives workers. Several engines of several ranks need orchestrator mode.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError

FILE = "launch.json"  # in the root of the repository; Triton reads folders only
ENGINE_MODELS: dict[Role, str] = {"target": "tensorrt_llm", "draft": "tensorrt_llm_draft"}


@dataclass(frozen=True)
class Placement:
    """How the server of a repository must be started."""

    models: tuple[str, ...]  # those that hold engines
    world_size: int  # processes that mpirun starts; 1: the server only
    gpus: int
    orchestrator: bool
    spawns: bool  # the orchestrator starts its workers by itself
    release: str  # of TensorRT-LLM


def place(ranks: Mapping[Role, int], *, spawns: bool = True, release: str) -> Placement:
    """Return how to start a server for engines of these numbers of ranks; they share the GPUs."""
    several = len(ranks) > 1 and max(ranks.values()) > 1
    if several and not spawns:
        world = 1 + sum(ranks.values())  # the orchestrator has a rank of its own
    else:
        world = 1 if several else max(ranks.values())
    models = tuple(ENGINE_MODELS[role] for role in ranks)
    return Placement(models, world, max(ranks.values()), several, spawns, release)


def gpu_device_ids(ranks: int) -> str:
    """Return the GPUs of an engine, in the format of the backend's parameter of that name."""
    return ",".join(str(gpu) for gpu in range(ranks))


def participant_ids(role: Role, ranks: Mapping[Role, int], placement: Placement) -> str:
    """Return an engine's MPI ranks; empty unless the workers are started by mpirun.

    Rank 0 is the orchestrator; the draft's ranks come first, as in upstream's example.
    """
    if not placement.orchestrator or placement.spawns:
        return ""
    first = 1 if role == "draft" else 1 + ranks.get("draft", 0)
    return ",".join(str(rank) for rank in range(first, first + ranks[role]))


def write_placement(placement: Placement, repository: Path) -> None:
    """Write the placement to the file that `read_placement` reads."""
    text = json.dumps(asdict(placement), indent=2, sort_keys=True) + "\n"
    (repository / FILE).write_text(text, encoding="utf-8")


def read_placement(repository: Path) -> Placement | None:
    """Return how to start the server of a repository; None if it has no TensorRT-LLM engines.

    Raises ConfigError if the file is damaged.
    """
    file = repository / FILE
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Placement(**{**values, "models": tuple(values["models"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}", hint="run `specpipe package` again"
        ) from error
