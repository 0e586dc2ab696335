"""The job that writes Medusa heads as the server of a target reads them, which serves it as it is.

Not here: heads for engines; conversion writes them into the target's checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from specpipe.checkpoint.medusa import HeadsSource
from specpipe.checkpoint.reading import digest_content
from specpipe.checkpoint.source import Source
from specpipe.checkpoint.vllm_heads import FORMAT, write_vllm_heads
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import ArtifactKind, Manifest
from specpipe.core.contracts import Role
from specpipe.core.digests import remembered
from specpipe.core.model import ModelConfig
from specpipe.engine.backend import Workshop
from specpipe.plan.opened import OpenedModels
from specpipe.run.jobs import Job, Progress, StageName, StartedJob


@dataclass(frozen=True, eq=False)
class HeadsJob(Job):
    """Makes the folder of the heads."""

    stage: ClassVar[StageName] = "convert"
    kind: ClassVar[ArtifactKind] = "checkpoint"
    role: Role
    config: RunConfig  # the plan's
    model: ModelConfig  # the target
    opened: OpenedModels
    memory: Path  # the file that keeps the digests of sources

    def inputs(self) -> Mapping[str, str]:
        """See `Job`; the target's weights count where the heads share its output layer."""
        heads, source = self._heads(), self.opened.source(self.config, "target")
        files = list(heads.files()) + (source.files() if heads.shares_output else [])
        digests = {
            f"{file.parent.name}/{file.name}": remembered(file, self.memory, digest_content)
            for file in files
        }
        return {**digests, "format": FORMAT}

    def start(self, shop: Workshop) -> StartedJob:
        """See `Job`; fetches the target."""
        source = self.opened.fetched(self.config, "target", shop.notify)
        return StartedJob(partial(self._write, source))

    def _write(self, source: Source, out: Path, progress: Progress) -> Manifest:
        write_vllm_heads(self._heads(), source, self.model, out)
        return Manifest("checkpoint", self.inputs())

    def _heads(self) -> HeadsSource:
        found = self.opened.drafter(self.config, "target")
        if not isinstance(found, HeadsSource):
            raise TypeError(f"{found} are no Medusa heads")
        return found
