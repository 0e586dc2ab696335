"""The `llmapi` backend: compiles no engine; building writes what the front of the model reads."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import Eagle3
from specpipe.config.upstream_methods import UPSTREAM_ONLY
from specpipe.core.contracts import Role
from specpipe.core.endpoint import Endpoint, Serving
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import Rejection, Unsupported
from specpipe.core.model import ModelConfig
from specpipe.engine.backend import HERE, BuildRequest, Command, Facts, Footprint, Workshop
from specpipe.engine.fronts.table import FRONTS, check_front
from specpipe.engine.gpus import Gpu
from specpipe.engine.llmapi.endpoint import describe
from specpipe.engine.llmapi.model_yaml import FILE, TREE, TREE_SIZES, drafting_fields, model_yaml
from specpipe.engine.llmapi.notes import class_notes, release_notes, sampling_notes
from specpipe.engine.llmapi.releases import LlmApiRelease, releases
from specpipe.engine.tensorrt import check
from specpipe.engine.tensorrt.check import check_cache
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.engine.tensorrt.options import check_run
from specpipe.engine.tensorrt.profiles import DEFAULT, Profile, llmapi_releases, profile_of

_KEYS = {TREE: "tree: dynamic"}  # upstream's names that a config spells in another way


class LlmApiBackend:
    """See `Backend`."""

    def check(self, request: BuildRequest) -> list[Rejection]:
        """Return every reason why the requested release cannot serve this model."""
        profile = profile_of(request.engine.tensorrt_llm)
        return [
            *check.check_known(request, llmapi_releases()),
            *_check_release(request, profile),
            *check_front(request),
            *_check_drafting(request, profile.llmapi),
            *check.check_gpu(request, profile),
            *_check_formats(request),
            *_check_revisions(request),
            *check.check_ranks(request),
        ]

    def check_run(self, config: RunConfig) -> Iterator[Rejection]:
        """Yield every option of `speculation` that TensorRT-LLM ignores, and several instances."""
        if (config.serving.instances or 1) > 1:
            yield Rejection(
                f"serving.instances is {config.serving.instances}: backend llmapi serves one "
                "instance; each would load the model again, and NVIDIA's model wants GPUs for each "
                "(gpu_device_ids)",
                "remove serving.instances, and raise engine.max_batch_size",
            )
        yield from check_run(config)

    def notes(
        self, config: RunConfig, models: Mapping[Role, ModelConfig], gpu: Gpu | None
    ) -> Iterator[str]:
        """Yield the models for which it may have no class, and what depends on the release."""
        yield from class_notes(model.architecture for model in models.values())
        yield from sampling_notes(config)
        yield from release_notes(config)

    def versions(self, release: str | None = None) -> Mapping[str, str]:
        """Return the TensorRT-LLM release and the container that serve the model."""
        profile = profile_of(release)
        return {"tensorrt_llm": profile.tensorrt_llm, "container": profile.container}

    def commands(self, request: BuildRequest, checkpoint: Path, out: Path) -> list[Command]:
        """Return no commands."""
        return []

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return model.yaml, or what another front than Triton reads.

        Nothing if the LLM API of the release does not support the method.
        """
        profile = profile_of(request.engine.tensorrt_llm)
        if profile.llmapi is None or request.method not in profile.llmapi_methods:
            return {}
        if request.front in FRONTS:
            return FRONTS[request.front].files(request)
        return {FILE: model_yaml(request, profile)}

    def footprint(self, request: BuildRequest) -> Footprint:
        """Estimate the memory on each GPU, as for a TensorRT-LLM engine of these sizes."""
        return footprint(request, profile_of(request.engine.tensorrt_llm))

    def build(
        self, request: BuildRequest, checkpoint: Path, out: Path, shop: Workshop = HERE
    ) -> Facts:
        """Write the files of the front into `out`; `checkpoint` is not read."""
        for name, text in self.files(request).items():
            (out / name).write_text(text, encoding="utf-8")
        return {"container": container_of(request)}

    def endpoint(self, serving: Serving) -> Endpoint:
        """Return how a run is served and called."""
        return describe(serving)

    def load(self, engine: Path) -> LoadedEngine:
        """Refuse: TensorRT-LLM's LLM API runs the model inside Triton."""
        raise Unsupported("Triton's llmapi model loads the model; specpipe cannot load it here")


def container_of(request: BuildRequest) -> str:
    """Return the image that serves a run; empty if none is known."""
    profile = profile_of(request.engine.tensorrt_llm)
    if request.front in FRONTS:
        return FRONTS[request.front].image(profile.tensorrt_llm)
    return profile.container


def _check_release(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    if profile.llmapi is None:
        yield Rejection(
            f"specpipe has no profile of the LLM API of TensorRT-LLM {profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use backend: tensorrt",
        )
        return
    if request.method not in profile.llmapi_methods:
        yield _unsupported_method(request, profile)


def _unsupported_method(request: BuildRequest, profile: Profile) -> Rejection:
    """Return the refusal of a method: it has engines, other releases have it, or none has."""
    method = request.method
    newer = [name for name, found in releases().items() if method in found.methods]
    if newer:
        return Rejection(
            f"the LLM API of TensorRT-LLM {profile.tensorrt_llm} does not support method {method}",
            f"set engine.tensorrt_llm to one of {', '.join(newer)}, and serving.front to a server "
            "that has it",
        )
    if method in DEFAULT.methods:
        tags = f"{DEFAULT.tags[0]}-{DEFAULT.tags[-1]}"
        return Rejection(
            f"method {method} needs TensorRT-LLM engines, which the LLM API does not use",
            f"use backend: tensorrt (TensorRT-LLM up to {DEFAULT.tensorrt_llm}, container {tags})"
            f"{'' if method in UPSTREAM_ONLY else ', or backend: openvino'}",
        )
    return Rejection(
        f"the LLM API does not support method {method}",
        f"use backend: openvino, or one of {', '.join(profile.llmapi_methods)}",
    )


def _check_drafting(request: BuildRequest, release: LlmApiRelease | None) -> Iterator[Rejection]:
    """Refuse options that the release has no field for, and speculation over pipeline stages."""
    record = release.methods.get(request.method) if release else None
    if release is None or record is None:
        return
    newer = [r.name for r in releases().values() if request.method in r.methods]
    for name in drafting_fields(request):
        if record.spell(name) is None and name not in TREE_SIZES:
            has = [n for n in newer if releases()[n].methods[request.method].spell(name)]
            yield Rejection(
                f"TensorRT-LLM {release.name} has no {_KEYS.get(name, name)} for method "
                f"{request.method}",
                f"remove it, or set engine.tensorrt_llm to one of {', '.join(has)}"
                if has
                else "remove it",
            )
    if record.spell(TREE) is not None:
        yield from _check_tree(request)
    stages = request.engine.parallel.pp_size
    if stages > 1 and request.method not in release.pipeline_speculation:
        yield Rejection(
            f"TensorRT-LLM {release.name} does not run {request.method} over pipeline stages, and "
            f"engine.pp_size is {stages}",
            "raise engine.tp_size instead, or use method: none",
        )


def _check_tree(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse sizes of a growing tree that `EagleDecodingConfig` (llm_args.py) refuses."""
    options = request.speculation
    if not isinstance(options, Eagle3) or options.tree != "dynamic":
        return
    levels, paths, nodes = options.draft_len_per_beam, options.num_beams, options.num_draft_tokens
    if not levels <= nodes <= levels * paths:
        yield Rejection(
            f"speculation.num_draft_tokens is {nodes}, and a tree of TensorRT-LLM with {levels} "
            f"levels (draft_len_per_beam) of {paths} nodes (num_beams) has {levels} to "
            f"{levels * paths} nodes",
            "change one of the three",
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
    yield from check_cache(request)
