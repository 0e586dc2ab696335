"""The `vllm` backend: compiles no engine; building writes what starts the server."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.contracts import Role
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.backend import HERE, BuildRequest, Command, Facts, Footprint, Workshop
from specpipe.engine.fronts.vllm_serve import VllmServe
from specpipe.engine.gpus import Gpu
from specpipe.engine.openai_models import openai_endpoint
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.engine.vllm.check import check
from specpipe.engine.vllm.releases import default_release
from specpipe.engine.vllm.triton_endpoint import describe as describe_triton
from specpipe.engine.vllm.triton_model import repository_files

TOKENIZER = "tokenizer"


class VllmBackend:
    """See `Backend`."""

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why vLLM cannot serve this model."""
        return check(request)

    def check_run(self, config: RunConfig) -> Iterator[Rejection]:
        """Return nothing: `check` refuses what vLLM lacks."""
        return iter(())

    def notes(
        self, config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
    ) -> Iterator[str]:
        """Yield the models for which vLLM has no class of its own."""
        release = default_release()
        for name in sorted({model.architecture for model in models.values()}):
            if name not in release.architectures:
                yield (
                    f"vLLM {release.name} has no class of its own for {name}; it may run the "
                    "model with transformers' code, which was not tried"
                )

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Return the release of vLLM, and the image that has it."""
        found = default_release()
        return {"vllm": found.name, "container": found.image}

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return no commands."""
        return []

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return what starts the server; nothing if vLLM does not have the method."""
        if request.method not in ("none", *default_release().methods):
            return {}
        if request.front == "triton":
            return repository_files(request)
        return VllmServe().files(request)

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate the memory on each GPU, as for a TensorRT-LLM engine of these sizes."""
        return footprint(request)

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Write the files into `out`; `checkpoint` is not read."""
        for name, text in self.files(request).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text, encoding="utf-8")
        return {"container": default_release().image}

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is called; a request cannot change its speculation."""
        if serving.front == "triton":
            return describe_triton(serving)
        speculates = serving.method != "none"
        found = openai_endpoint(VllmServe.owner, [serving.model], speculates=speculates)
        return replace(found, tokenizer=TOKENIZER)

    def load(self, engine: Path) -> LoadedEngine:
        """Refuse: vLLM runs the model in processes of its own."""
        raise Unsupported("`vllm serve` loads the model; specpipe cannot load it here")
