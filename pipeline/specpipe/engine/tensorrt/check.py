"""Reasons why a TensorRT-LLM engine cannot be built, one function per subject.

A check reports every reason, not only the first one.
"""

import re
from collections.abc import Iterator, Sequence

from specpipe.config.speculation import REWINDING
from specpipe.config.upstream_methods import UPSTREAM_ONLY
from specpipe.core.divisibility import check_parallel
from specpipe.core.errors import Rejection
from specpipe.core.upstream import ENGINE_MODES
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.lower import reads_blocks, takes_drafts
from specpipe.engine.tensorrt.profiles import (
    DEFAULT,
    ENGINES_END,
    Profile,
    find_profile,
    unknown_release,
)

_NEEDS_SM = {"fp8": 89, "nvfp4": 100}
_INTEGERS = ("int8", "int4", "int4_awq", "int8_sq")  # weights that _WITHOUT_INTEGERS lack
_WITHOUT_INTEGERS = range(100, 120)  # compute capabilities; builder.py::build of 1.x
_ENGINES = ", ".join(ENGINE_MODES)


def check_known(request: BuildRequest, supported: Sequence[str]) -> Iterator[Rejection]:
    """Refuse releases without a profile; the other checks then use the default profile.

    `supported` are the releases that the backend supports, for the hint.
    """
    release = request.engine.tensorrt_llm
    if release is not None and find_profile(release) is None:
        yield unknown_release(release, supported)


def check_release(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse releases without engines, and methods that engines do not support."""
    if not profile.methods:
        what = (
            f"TensorRT-LLM {profile.tensorrt_llm} no longer builds engines (removed in "
            f"{ENGINES_END})"
            if not profile.tensorrt
            else f"specpipe builds no engines with TensorRT-LLM {profile.tensorrt_llm}"
        )
        yield Rejection(
            what,
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}"
            + (", or use backend: llmapi" if request.method in profile.llmapi_methods else ""),
        )
    if request.method not in ENGINE_MODES:
        yield Rejection(
            f"backend tensorrt does not support method {request.method}", elsewhere(request.method)
        )
    elif profile.methods and request.method not in profile.methods:
        yield Rejection(
            f"Triton cannot configure method {request.method} with TensorRT-LLM "
            f"{profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}",
        )
    elif takes_drafts(request) and request.draft_nodes == 0:
        yield Rejection(
            f"method {request.method} would draft no tokens with these sizes; trtllm-build needs "
            "at least one draft token",
            "raise the sizes under speculation, or use method: none",
        )


def elsewhere(method: str) -> str:
    """Return a hint: the backends and methods to use instead of a method without engines."""
    if method in DEFAULT.llmapi_methods:
        cpu = "" if method in UPSTREAM_ONLY else " or backend: openvino"
        return f"use backend: llmapi{cpu}, or one of these methods: {_ENGINES}"
    return f"use backend: openvino, or one of these methods: {_ENGINES}"


def check_gpu(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse a missing GPU, and a GPU that the release does not support."""
    if request.engine.gpu is None:
        yield Rejection(
            "a TensorRT-LLM engine is built for one GPU model, but engine.gpu is not given",
            "set engine.gpu, e.g. H100-SXM",
        )
    elif request.sm is not None and request.sm not in profile.sms:
        yield Rejection(
            f"TensorRT-LLM {profile.tensorrt_llm} is not known to support {request.engine.gpu} "
            f"(compute capability {request.sm / 10:.1f})",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use another GPU",
        )
    if request.engine.dtype == "float32":
        yield Rejection(
            "engine.dtype is float32 (the default), which specpipe does not serve on GPUs",
            "set engine.dtype: bfloat16 or float16",
        )


def check_quantization(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse number formats that the GPU or the release does not support."""
    engine = request.engine
    weights, cache, sm = engine.quantization, engine.kv_cache_quantization, request.sm
    if weights not in profile.quantizations:
        yield Rejection(
            f"specpipe builds no {weights} engines with TensorRT-LLM {profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use fp8",
        )
    elif weights == "int4_awq" and request.model.moe is not None:
        yield from _check_int4_experts(request, profile)
    if sm is None:
        return
    for form, name in ((weights, "weights"), (cache, "KV cache")):
        least = _NEEDS_SM.get(form, 0)
        if sm < least:
            yield Rejection(
                f"{engine.gpu} (compute capability {sm / 10:.1f}) does not support {form}, "
                f"which the config sets for the {name}",
                f"{form} needs {least / 10:.1f} or more; use {_instead(sm)}"
                if name == "weights"
                else "use kv_cache_quantization: none, or int8 without draft_model",
            )
    if sm in _WITHOUT_INTEGERS and (weights in _INTEGERS or cache == "int8"):
        what = f"{weights} weights" if weights in _INTEGERS else "an int8 KV cache"
        yield Rejection(
            f"trtllm-build refuses {what} on {engine.gpu} (compute capability {sm / 10:.1f})",
            "use fp8 or nvfp4, with kv_cache_quantization: fp8",
        )


def _check_int4_experts(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse int4_awq for experts that the release cannot build in that format."""
    if not profile.int4_awq_experts:
        yield Rejection(
            f"TensorRT-LLM {profile.tensorrt_llm} does not support int4_awq experts",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use fp8",
        )
    if request.model.moe_shared_expert_intermediate_size:
        yield Rejection(
            "trtllm-build does not support int4_awq for models with a shared expert: "
            "TensorRT-LLM's SharedMoE takes no group size (layers/moe.py)",
            "use engine.quantization: fp8 or int4, and a source model that is not already int4",
        )


def check_cache(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse an fp8 KV cache of a model that is served as it is, on a GPU without the type."""
    engine, least = request.engine, _NEEDS_SM["fp8"]
    if engine.kv_cache_quantization == "fp8" and request.sm is not None and request.sm < least:
        yield Rejection(
            f"{engine.gpu} (compute capability {request.sm / 10:.1f}) does not support fp8, "
            "which the config sets for the KV cache",
            "use kv_cache_quantization: none",
        )


def _instead(sm: int) -> str:
    """Return the quantizations to use instead on a GPU of this compute capability."""
    return "fp8" if sm >= _NEEDS_SM["fp8"] else "int8 or int4_awq"


def check_method(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse settings that the engine of a method cannot be combined with."""
    if request.method == "draft_model" and request.role == "target" and not reads_blocks(request):
        cache, weights = request.engine.kv_cache_quantization, request.engine.quantization
        yield Rejection(
            f"the target of draft_model needs paged-context attention, which an {cache} KV cache "
            f"with {'unquantized' if weights == 'none' else weights} weights does not support",
            "use kv_cache_quantization: none, or fp8 together with quantization: fp8",
        )
    if request.model.drafter_module and request.engine.quantization == "int8_sq":
        yield Rejection(
            f"engines of method {request.method} do not support SmoothQuant weights (int8_sq)",
            "use quantization: fp8, int8 or none",
        )


def check_model(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse models without a class in the release, or with one that computes something else."""
    model, role = request.model, request.role
    yield from _check_class(request, profile)
    for limit in model.upstream_limits:
        yield Rejection(
            f"{role}: TensorRT-LLM's {model.architecture} {limit}", "use backend: openvino"
        )
    window = model.sliding_window
    if window is not None and request.engine.max_seq_len > window:
        why = (
            f"method {request.method} discards rows of the KV cache, which TensorRT-LLM does not "
            "support for layers with a sliding window"
            if request.method in REWINDING
            else "the engine attends to all tokens unless Triton sets the window, and specpipe "
            "does not set it"
        )
        yield Rejection(
            f"{role}: the model has a sliding window of {window} tokens, but engine.max_seq_len is "
            f"{request.engine.max_seq_len}; {why}",
            f"set engine.max_seq_len to {window} or less, or use backend: openvino",
        )


def _check_class(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    model, role, since = request.model, request.role, request.model.upstream_since
    if since is None:
        yield Rejection(
            f"{role}: no known release of TensorRT-LLM builds engines of {model.architecture}",
            "use backend: openvino, or backend: llmapi if TensorRT-LLM's LLM API knows the model",
        )
    elif tuple(int(n) for n in re.findall(r"\d+", profile.tensorrt_llm)[:2]) < since:
        scaled = " with yarn" * ((model.rotary_scaling or {}).get("rope_type") == "yarn")
        yield Rejection(
            f"{role}: TensorRT-LLM supports {model.architecture}{scaled} since "
            f"{since[0]}.{since[1]}, the config uses {profile.tensorrt_llm}",
            f"remove engine.tensorrt_llm to use {DEFAULT.tensorrt_llm}, or use backend: openvino",
        )


def check_ranks(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse numbers of ranks that the model cannot be divided by, or that are too large."""
    tp, pp = request.engine.parallel.tp_size, request.engine.parallel.pp_size
    if tp < 1 or pp < 1:
        return
    yield from check_parallel(request.model, request.engine.parallel, request.role)
    if tp * pp > 16:
        yield Rejection(
            f"{tp * pp} ranks need more than two machines of 8 GPUs",
            "lower engine.tp_size or engine.pp_size",
        )
    elif tp > 8:
        yield Rejection(
            f"tp_size {tp} spans machines of 8 GPUs: every layer would wait for the network",
            f"set engine.tp_size: 8 and engine.pp_size: {tp * pp // 8}",
        )
