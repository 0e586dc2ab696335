"""The job of stage 2: an engine of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from specpipe.core.artifacts import ArtifactKind, Manifest
from specpipe.core.contracts import Role
from specpipe.engine.backend import Backend, BuildRequest, Command, Workshop
from specpipe.run.jobs import Job, Progress, StageName, StartedJob, require_artifact


@dataclass(frozen=True, eq=False)
class CompileJob(Job):
    """Makes the engine of one role."""

    stage: ClassVar[StageName] = "compile"
    kind: ClassVar[ArtifactKind] = "engine"
    role: Role
    request: BuildRequest
    backend: Backend
    checkpoint: Path  # the backend reads it, unless it serves the sources
    heads: Path | None = None  # converted heads of a model that is served as it is

    def inputs(self) -> Mapping[str, str]:
        """See `Job`."""
        request, backend = self.request, self.backend
        return {
            **backend.files(request),
            **self._checkpoint_key(),
            **_request_options(request),
            **_command_options(backend.commands(request, Path("checkpoint"), Path("engine"))),
            **backend.versions(request.engine.tensorrt_llm),
        }

    def start(self, shop: Workshop) -> StartedJob:
        """See `Job`."""
        return StartedJob(partial(self._write, shop))

    def _write(self, shop: Workshop, out: Path, progress: Progress) -> Manifest:
        inputs = self.inputs()
        facts = self.backend.build(self.request, self.checkpoint, out, shop)
        return Manifest("engine", inputs, facts)

    def _checkpoint_key(self) -> dict[str, str]:
        if self.heads is not None:
            return {"heads": require_artifact(self.heads, "convert")}
        if self.request.engine.traits.serves_sources:
            return {}
        return {"checkpoint": require_artifact(self.checkpoint, "convert")}


def _request_options(request: BuildRequest) -> dict[str, str]:
    engine, drafted = request.engine, request.draft_vocab_size
    return {
        "quantization": engine.quantization,
        "kv_cache_quantization": engine.kv_cache_quantization,
        "max_batch_size": str(engine.max_batch_size),
        "max_input_len": str(engine.max_input_len),
        "max_seq_len": str(engine.max_seq_len),
        **({"gpu": engine.gpu} if engine.gpu else {}),
        **({"draft_vocab_size": str(drafted)} if drafted else {}),
    }


def _command_options(commands: Sequence[Command]) -> dict[str, str]:
    """Return the options of the planned programs, except paths and the number of workers."""
    told = {name: value for command in commands for name, value in command.options().items()}
    places = ("--checkpoint_dir", "--output_dir", "--workers")
    return {name: value for name, value in told.items() if name not in places}
