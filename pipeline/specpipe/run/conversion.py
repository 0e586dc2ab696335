"""The job of stage 1: a checkpoint of a model, with its heads or drafter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.quantize import quantizing_of
from specpipe.checkpoint.reading import digest_content
from specpipe.checkpoint.source import Origin, Source
from specpipe.config.files import require_file
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import ArtifactKind, Manifest, digest_json, read_artifact
from specpipe.core.contracts import Role
from specpipe.core.digests import Stamp, remember, remembered
from specpipe.core.prompts import read_prompts
from specpipe.engine.backend import Workshop
from specpipe.plan.opened import OpenedModels
from specpipe.run.jobs import Job, Progress, StageName, StartedJob


@dataclass(frozen=True, eq=False)
class ConvertJob(Job):
    """Makes the checkpoint of one role."""

    stage: ClassVar[StageName] = "convert"
    kind: ClassVar[ArtifactKind] = "checkpoint"
    role: Role
    config: RunConfig  # the plan's
    opened: OpenedModels
    memory: Path  # the file that keeps the digests of sources

    def inputs(self) -> Mapping[str, str]:
        """See `Job`; weights that are still on the hub have the digest that was noted of them."""
        source = self.opened.source(self.config, self.role)
        return self._conversion(source).inputs(partial(self._digest, source))

    def start(self, shop: Workshop) -> StartedJob:
        """See `Job`; fetches the weights. The state of all files names the folder to resume in."""
        source = self.opened.fetched(self.config, self.role, shop.notify)
        conversion = self._conversion(source)
        state = conversion.state()
        return StartedJob(
            partial(self._write, conversion, state, shop.notify), _resume_key(conversion, state)
        )

    def _write(
        self,
        conversion: Conversion,
        state: Mapping[Path, Stamp],
        notify: Callable[[str], None],
        out: Path,
        progress: Progress,
    ) -> Manifest:
        converted = conversion.write(out, progress, state)
        for remark in converted.remarks:
            notify(f"convert {self.role}: {remark}")
        digests = converted.digests
        remember(self.memory, state, digests)
        inputs = conversion.inputs(digests.__getitem__)
        return Manifest("checkpoint", inputs, _origin_facts(conversion.source))

    def _conversion(self, source: Source) -> Conversion:
        engine = self.config.engine
        quantizing = quantizing_of(engine, calibration_prompts(self.config))
        drafter = self.opened.drafter(self.config, self.role)
        return Conversion(source, engine.dtype, drafter, quantizing, engine.parallel)

    def _digest(self, source: Source, file: Path) -> str:
        if source.origin and file.name in source.missing:
            return _noted_digest(self.path, source.origin, file.name)
        return remembered(file, self.memory, digest_content)


def _resume_key(conversion: Conversion, state: Mapping[Path, Stamp]) -> str:
    stamps = {str(path.absolute()): seen.text for path, seen in state.items()}
    return digest_json([stamps, conversion.options()])


def _origin_facts(source: Source) -> dict[str, str]:
    """Return the manifest's facts about a model that came from the hub."""
    origin = source.origin
    return {"model": origin.model, "commit": origin.commit} if origin else {}


def _noted_digest(path: Path, origin: Origin, name: str) -> str:
    """Return the digest of weights that are not on this disk, if they were converted before.

    A commit never changes. So a checkpoint at `path` that was made of it has the digests.
    """
    artifact = read_artifact(path)
    made_of = artifact.manifest.facts if artifact else {}
    if artifact and (made_of.get("model"), made_of.get("commit")) == (origin.model, origin.commit):
        return artifact.manifest.inputs.get(f"source {name}", "to be fetched")
    return "to be fetched"


def calibration_prompts(config: RunConfig) -> list[str]:
    """Return the texts for the calibration of a quantization: all prompts of the validation."""
    text = config.validate.prompts
    return read_prompts(require_file(text, config, "validate.prompts") if text else None)
