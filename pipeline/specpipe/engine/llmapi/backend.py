"""The `llmapi` backend: compiles no engine; building writes the `model.yaml` that Triton serves."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from specpipe.config.speculation import UPSTREAM_ONLY
from specpipe.core.contracts import LoadedEngine
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.errors import Rejection, Unsupported
from specpipe.engine.backend import HERE, BuildRequest, Command, Facts, Footprint, Workshop
from specpipe.engine.llmapi.endpoint import describe
from specpipe.engine.llmapi.model_yaml import FILE, model_yaml
from specpipe.engine.tensorrt import check
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.engine.tensorrt.profiles import DEFAULT, Profile, llmapi_releases, profile_of


class LlmApiBackend:
    """See `Backend`."""

    whole_heads = True
    serves_sources = True

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why the requested release cannot serve this model."""
        profile = profile_of(request.engine.tensorrt_llm)
        return [
            *check.check_known(request, llmapi_releases()),
            *_check_release(request, profile),
            *check.check_gpu(request, profile),
            *_check_formats(request),
            *_check_revisions(request),
            *check.check_ranks(request),
        ]

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Return the TensorRT-LLM release and the container that serve the model."""
        profile = profile_of(release)
        return {"tensorrt_llm": profile.tensorrt_llm, "container": profile.container}

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return no commands."""
        return []

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return model.yaml; nothing if the LLM API of the release does not support the method."""
        profile = profile_of(request.engine.tensorrt_llm)
        if profile.llmapi is None or request.method not in profile.llmapi_methods:
            return {}
        return {FILE: model_yaml(request, profile)}

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate the memory on each GPU, as for a TensorRT-LLM engine of these sizes."""
        return footprint(request, profile_of(request.engine.tensorrt_llm))

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Write model.yaml into `out`; `checkpoint` is not read."""
        for name, text in self.files(request).items():
            (out / name).write_text(text, encoding="utf-8")
        return {"container": profile_of(request.engine.tensorrt_llm).container}

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        return describe(serving)

    def load(self, engine: Path) -> LoadedEngine:
        """Refuse: TensorRT-LLM's LLM API runs the model inside Triton."""
        raise Unsupported("Triton's llmapi model loads the model; specpipe cannot load it here")


def _check_release(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    if profile.llmapi is None:
        yield Rejection(
            f"specpipe has no profile of the LLM API of TensorRT-LLM {profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use backend: tensorrt",
        )
        return
    if not profile.container:
        yield Rejection(
            f"specpipe knows no Triton container with TensorRT-LLM {profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}",
        )
    if request.method not in profile.llmapi_methods:
        engines = request.method in DEFAULT.methods
        tags = f"{DEFAULT.tags[0]}-{DEFAULT.tags[-1]}"
        yield Rejection(
            f"method {request.method} needs TensorRT-LLM engines, which the LLM API does not use"
            if engines
            else f"the LLM API does not support method {request.method}",
            f"use backend: tensorrt (TensorRT-LLM up to {DEFAULT.tensorrt_llm}, container {tags})"
            f"{'' if request.method in UPSTREAM_ONLY else ', or backend: openvino'}"
            if engines
            else f"use backend: openvino, or one of {', '.join(profile.llmapi_methods)}",
        )


def _check_revisions(request: BuildRequest) -> Iterator[Rejection]:
    if "draft" in request.revisions:
        yield Rejection(
            "the LLM API downloads a draft model from its main branch only; "
            f"speculation.draft.revision is {request.revisions['draft']}",
            "download that revision and set speculation.draft.model to the folder",
        )


def _check_formats(request: BuildRequest) -> Iterator[Rejection]:
    engine = request.engine
    if engine.quantization != "none":
        yield Rejection(
            "the LLM API serves a Hugging Face model unchanged; it does not quantize it to "
            f"{engine.quantization}",
            "set engine.quantization: none and set target.model to a quantized export of ModelOpt",
        )
    if engine.kv_cache_quantization == "int8":
        yield Rejection(
            "the LLM API does not support an int8 KV cache",
            "use kv_cache_quantization: fp8 or none",
        )
    if engine.kv_cache_quantization == "fp8" and request.sm is not None and request.sm < 89:
        yield Rejection(
            f"{engine.gpu} (compute capability {request.sm / 10:.1f}) does not support fp8, "
            "which the config sets for the KV cache",
            "use kv_cache_quantization: none",
        )
