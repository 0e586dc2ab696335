"""The `tensorrt` backend: engines built by `trtllm-build` and served by Triton's C++ backend."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.contracts import Role
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.core.upstream import ENGINE_MODES
from specpipe.engine.backend import HERE, BuildRequest, Command, Facts, Footprint, Workshop
from specpipe.engine.gpus import Gpu
from specpipe.engine.tensorrt import check
from specpipe.engine.tensorrt.build import build_engine
from specpipe.engine.tensorrt.eagle import check_eagle
from specpipe.engine.tensorrt.endpoint import describe
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.engine.tensorrt.lower import build_flags
from specpipe.engine.tensorrt.medusa import check_medusa
from specpipe.engine.tensorrt.notes import engine_notes
from specpipe.engine.tensorrt.options import check_run
from specpipe.engine.tensorrt.profiles import engine_releases, profile_of
from specpipe.engine.tensorrt.redrafter import check_redrafter


class TensorRtBackend:
    """See `Backend`."""

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why the requested release cannot build this engine."""
        profile = profile_of(request.engine.tensorrt_llm)
        return [
            *check.check_known(request, engine_releases()),
            *check.check_release(request, profile),
            *check.check_gpu(request, profile),
            *check.check_quantization(request, profile),
            *check.check_model(request, profile),
            *check.check_method(request),
            *check_medusa(request),
            *check_redrafter(request, profile.tensorrt_llm),
            *check_eagle(request),
            *check.check_ranks(request),
        ]

    def check_run(self, config: RunConfig) -> Iterator[Rejection]:
        """Yield every option of `speculation` that TensorRT-LLM ignores."""
        return check_run(config)

    def notes(
        self, config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
    ) -> Iterator[str]:
        """Yield what the engines of a method ignore, and what upstream does not document."""
        return engine_notes(config, models["target"], gpu)

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Return the versions that the engine's bytes depend on."""
        profile = profile_of(release)
        return {
            "tensorrt_llm": profile.tensorrt_llm,
            "tensorrt": profile.tensorrt,
            "container": profile.container,
        }

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return the `trtllm-build` call for this engine."""
        if request.method not in ENGINE_MODES:
            return []
        profile = profile_of(request.engine.tensorrt_llm)
        return [Command("compile", build_flags(request, checkpoint, out, profile))]

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return nothing: no file of the engine is known before it is built."""
        return {}

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate the memory of the engine on each GPU."""
        return footprint(request, profile_of(request.engine.tensorrt_llm))

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Run the planned `trtllm-build`, here or in the container; see `build_engine`."""
        (command,) = self.commands(request, checkpoint.absolute(), out.absolute())
        profile = profile_of(request.engine.tensorrt_llm)
        return build_engine(request, command, out.absolute(), profile, shop)

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        return describe(serving)

    def load(self, engine: Path) -> LoadedEngine:
        """Refuse: Triton's tensorrtllm backend runs TensorRT-LLM engines, not specpipe."""
        raise Unsupported("a TensorRT-LLM engine is served by Triton's tensorrtllm backend")
