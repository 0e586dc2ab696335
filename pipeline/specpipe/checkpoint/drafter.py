"""The tensors that a method adds to its target's checkpoint: Medusa heads, or another drafter.

Upstream's engines of such methods hold target and drafter in one network, so conversion writes both
into the same files, with a config.json that describes the addition.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from specpipe.checkpoint.families import HfConfig, TensorPlan
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.source import Opening, Renamed, TensorReader, read_tensors
from specpipe.core.contracts import Role
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.errors import ConfigError, Rejection
from specpipe.core.model import ModelConfig

if TYPE_CHECKING:
    import torch

CALIBRATION = "calibration.json"  # the accuracy that training measured, next to its product


class DrafterSource(Protocol):
    """Heads or a drafter that were found, but not read, and how they will be written."""

    @property
    def path(self) -> Path:
        """Where it was found, or what it is called."""
        ...

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files with its tensors; none: it is well-known and not on disk."""
        ...

    @property
    def accuracy(self) -> tuple[tuple[float, ...], ...] | None:
        """How often draft tokens are right, as `trees.grow_tree` reads it; None: not measured."""
        ...

    @property
    def summary(self) -> str:
        """Describe it for a plan, if it is not on disk: `4 heads of 1 layer`."""
        ...

    def files(self) -> list[Path]:
        """Return every file that decides what is written; none if it is not on disk."""
        ...

    def options(self) -> dict[str, str]:
        """Return what decides the bytes that are written, apart from the files."""
        ...

    def joined(self, model: ModelConfig) -> ModelConfig:
        """Return the facts of a target with this drafter in its checkpoint."""
        ...

    def check(self, role: Role, model: ModelConfig) -> list[Rejection]:
        """Return every reason why it cannot guess for the joined `model`, which has `role`."""
        ...

    def tensors(self, model: ModelConfig) -> list[TensorPlan]:
        """List what is written of its own tensors, in order; `model` is the joined one."""
        ...

    def shared(self, plans: list[TensorPlan]) -> list[TensorPlan]:
        """List what it needs of the target's tensors, which are planned by `plans`, once more."""
        ...

    def config(self, hf: HfConfig, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that the target's config.json gets; `written` are those that it has.

        `hf` is the target's own config.json. Raises ConfigError if it lacks what is needed.
        """
        ...

    def read(self, opening: Opening = SafetensorsFile) -> AbstractContextManager[TensorReader]:
        """Open its tensors under the names that `tensors` gives as sources.

        `opening` is how safetensors files are opened, see `read_tensors`.
        """
        ...


@dataclass(frozen=True)
class RenamedTensors:
    """The files of a drafter whose tensors have other names there than in the checkpoint."""

    path: Path
    weights: tuple[Path, ...]
    names: Mapping[str, str]  # TensorRT-LLM's name -> the name in the files

    def files(self) -> list[Path]:
        """Return the files with the tensors."""
        return list(self.weights)

    @contextmanager
    def read(self, opening: Opening = SafetensorsFile) -> Iterator[TensorReader]:
        """Open the tensors for reading under TensorRT-LLM's names."""
        with read_tensors(self.weights, opening) as reader:
            yield Renamed(reader, self.names)


def planned_token_map(module: str, count: int) -> TensorPlan:
    """Plan the ids of the tokens that can be drafted; float32 holds ids up to 2^24.

    The name is that of vLLM's Medusa heads (vllm/model_executor/models/medusa.py).
    """
    name = f"{module}.{TOKEN_MAP}"
    return TensorPlan(
        name, (count,), (name,), ((count,),), stage="every", join=_only, dtype="float32"
    )


def _only(parts: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Join: the one source, which may have whole numbers."""
    (part,) = parts
    return part


def output_copies(plans: list[TensorPlan], names: Iterable[str]) -> list[TensorPlan]:
    """Plan the target's output layer once more under each name; `plans`: the target's.

    It is read from the target's files, and cut and padded as its own output layer is.
    """
    output = next(plan for plan in plans if plan.name == "lm_head.weight")
    return [replace(output, name=name, stage="every") for name in names]


def read_calibration(folder: Path, heads: int | None) -> tuple[tuple[float, ...], ...] | None:
    """Read calibration.json, which training writes next to the tensors; None if there is none.

    `heads` is how many there must be, None: any number. Raises ConfigError for another number and
    for a damaged file.
    """
    file = folder / CALIBRATION
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        rows = tuple(tuple(map(float, row)) for row in values["conditional"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: not a calibration: {error}") from error
    if heads not in (None, len(rows)) or not all(rows):
        raise ConfigError(f"{file}: {len(rows)} heads are calibrated, {heads} are there")
    return rows
