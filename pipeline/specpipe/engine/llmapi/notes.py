"""Facts about a run of the LLM API that may surprise but do not forbid it."""

from collections.abc import Iterable, Iterator

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import InGraph
from specpipe.config.upstream_methods import DFlash, Pard
from specpipe.engine.llmapi.architectures import ARCHITECTURES
from specpipe.engine.tensorrt.profiles import profile_of


def class_notes(architectures: Iterable[str]) -> Iterator[str]:
    """Yield the architectures for which the LLM API may have no class."""
    for name in dict.fromkeys(architectures):
        if name not in ARCHITECTURES:
            yield (
                f"TensorRT-LLM's LLM API may have no class for {name}: its sources of late 2025 "
                "have none; try the model with it first, or use another backend"
            )


def sampling_notes(config: RunConfig) -> Iterator[str]:
    """Tell how drafts in the target's own graph follow the sampling options of a request."""
    profile, method = profile_of(config.engine.tensorrt_llm), config.speculation.method
    if not isinstance(config.speculation, InGraph) or profile.llmapi is None:
        return
    if profile.llmapi.sampling == "always":
        return
    if profile.llmapi.sampling == "flag":
        yield (
            f"allow_advanced_sampling lets {method} follow the temperature, top_k and top_p of a "
            "request; TensorRT-LLM calls it a prototype"
        )
    else:
        yield (
            f"{method} of TensorRT-LLM {profile.tensorrt_llm} ignores the temperature, top_k, "
            "top_p and seed of a request; send greedy requests, or use 1.2.1"
        )


def release_notes(config: RunConfig) -> Iterator[str]:
    """Tell what is not certain about the release, and which drafter the memory leaves out."""
    profile, options = profile_of(config.engine.tensorrt_llm), config.speculation
    if profile.llmapi is not None and not profile.container and profile.llmapi.inferred:
        yield (
            f"not all fields of the LLM API of TensorRT-LLM {profile.tensorrt_llm} could be read; "
            "docs/gpu.md lists those that are inferred"
        )
    if isinstance(options, Pard | DFlash):
        yield (
            f"the memory of the drafter of method {options.method} is not in the estimate; leave "
            "room for it"
        )
