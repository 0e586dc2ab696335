"""A job makes one artifact of a run: where it is, what decides its bytes, and how it is made.

`conversion`, `compilation` and `packaging` have the jobs of the stages.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from specpipe.core.artifacts import ArtifactKind, Manifest, read_artifact, why_stale
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError
from specpipe.engine.backend import Workshop

StageName = Literal["convert", "compile", "package"]
STAGES: tuple[StageName, ...] = ("convert", "compile", "package")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StartedJob:
    """A job that has started: it reads its inputs in the state that they had then."""

    write: Callable[[Path, Progress], Manifest]  # fills a folder, returns the manifest
    resume_key: str | None = None  # key of a folder in which `write` can resume


@dataclass(frozen=True, eq=False)
class Job(ABC):
    """One artifact to make."""

    stage: ClassVar[StageName]
    kind: ClassVar[ArtifactKind]
    role: Role | None  # None: the artifact is of the whole run
    path: Path

    @abstractmethod
    def inputs(self) -> Mapping[str, str]:
        """Name everything that decides the artifact's bytes.

        Raises ConfigError if the artifact of an earlier stage is missing or stale.
        """

    @abstractmethod
    def start(self, shop: Workshop) -> StartedJob:
        """Find what is read, and fetch what is missing; writes nothing of the artifact yet."""

    def stale(self) -> str | None:
        """Return why the artifact must be made; None if it is up to date."""
        return why_stale(self.path, self.kind, self.inputs)


def require_artifact(path: Path, stage: StageName) -> str:
    """Return the key of an earlier stage's artifact; raises ConfigError if there is none."""
    artifact = read_artifact(path)
    if artifact is None:
        raise ConfigError(
            f"{path} is not built", hint=f"run `specpipe {stage}` or `specpipe build`"
        )
    return artifact.manifest.key
