"""Why a TensorRT-LLM engine cannot be built: one function a subject, every reason at once."""

import re
from collections.abc import Iterator

from specpipe.building import BuildRequest, Rejection
from specpipe.divide import check_parallel
from specpipe.engine.tensorrt.lower import METHODS, reads_blocks, takes_drafts
from specpipe.engine.tensorrt.profiles import (
    DEFAULT,
    ENGINES_END,
    Profile,
    find_profile,
    unknown_release,
)
from specpipe.methods import REWINDING, UPSTREAM_ONLY

_WEIGHTS_ONLY = ("int8", "int4")
_NEEDS_SM = {"fp8": 89, "nvfp4": 100}
_ENGINES = ", ".join(METHODS)


def check_known(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse releases that no profile describes; all else is judged by the default one then."""
    if request.release is not None and find_profile(request.release) is None:
        yield unknown_release(request.release)


def check_release(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse releases without engines, and methods that no engine has."""
    if not profile.methods:
        what = (
            f"TensorRT-LLM {profile.tensorrt_llm} has no engines; upstream removed them in "
            f"{ENGINES_END}"
            if not profile.tensorrt
            else f"specpipe builds no engines with TensorRT-LLM {profile.tensorrt_llm}"
        )
        yield Rejection(
            what,
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}"
            + (", or use backend: llmapi" if request.method in profile.llmapi_methods else ""),
        )
    if request.method not in METHODS:
        yield Rejection(
            f"backend tensorrt has no engine for method {request.method}", elsewhere(request.method)
        )
    elif profile.methods and request.method not in profile.methods:
        yield Rejection(
            f"Triton cannot configure method {request.method} with TensorRT-LLM "
            f"{profile.tensorrt_llm}",
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}",
        )
    elif takes_drafts(request) and request.draft_nodes == 0:
        yield Rejection(
            f"method {request.method} drafts no token, and trtllm-build needs at least one",
            "raise the sizes under speculation, or use method: none",
        )


def elsewhere(method: str) -> str:
    """Name the nearest thing that works for a method that engines do not have."""
    if method in DEFAULT.llmapi_methods:
        cpu = "" if method in UPSTREAM_ONLY else " or backend: openvino"
        return f"use backend: llmapi{cpu}, or one of the engines' methods: {_ENGINES}"
    return f"use backend: openvino, or one of the engines' methods: {_ENGINES}"


def check_gpu(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse a missing GPU, and one that the release does not know."""
    if request.gpu is None:
        yield Rejection(
            "engines are built for one kind of GPU, but engine.gpu is not given",
            "set engine.gpu, e.g. H100-SXM",
        )
    elif request.sm is not None and request.sm not in profile.sms:
        yield Rejection(
            f"TensorRT-LLM {profile.tensorrt_llm} is not known to run on {request.gpu} "
            f"(compute capability {request.sm / 10:.1f})",
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}, or take another GPU",
        )
    if request.dtype == "float32":
        yield Rejection(
            "float32 engines are not served on GPUs", "set engine.dtype: bfloat16 or float16"
        )


def check_quantization(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse number formats that the GPU or the release lacks."""
    weights, cache, sm = request.quantization, request.kv_cache_quantization, request.sm
    if weights not in profile.quantizations:
        yield Rejection(
            f"specpipe builds no {weights} engines with TensorRT-LLM {profile.tensorrt_llm}",
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}, or use fp8",
        )
    elif weights == "int4_awq" and request.model.moe is not None:
        yield from _check_int4_experts(request, profile)
    if sm is None:
        return
    for what, name in ((weights, "weights"), (cache, "KV cache")):
        least = _NEEDS_SM.get(what, 0)
        if sm < least:
            yield Rejection(
                f"{request.gpu} (compute capability {sm / 10:.1f}) has no {what}, which the "
                f"{name} asked for",
                f"{what} needs {least / 10:.1f} or more; use {_instead(sm)}"
                if name == "weights"
                else "use kv_cache_quantization: none, or int8 without draft_model",
            )
    if sm >= 100 and (weights in (*_WEIGHTS_ONLY, "int8_sq") or cache == "int8"):
        what = f"{weights} weights" if cache != "int8" else "an int8 KV cache"
        yield Rejection(
            f"trtllm-build refuses {what} on {request.gpu} (compute capability {sm / 10:.1f})",
            "use fp8 or nvfp4, with kv_cache_quantization: fp8",
        )


def _check_int4_experts(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse int4_awq where the release has it for matrices, but not for experts like these."""
    if not profile.int4_awq_experts:
        yield Rejection(
            f"TensorRT-LLM {profile.tensorrt_llm} has no experts in int4_awq",
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}, or use fp8",
        )
    if request.model.moe_shared_expert_intermediate_size:
        yield Rejection(
            "trtllm-build cannot make int4_awq experts beside a shared one: upstream's SharedMoE "
            "takes no group size (layers/moe.py)",
            "use engine.quantization: fp8 or int4, with a model that is not in int4 yet",
        )


def _instead(sm: int) -> str:
    """Name weights that a GPU multiplies with, or at least holds, in fewer bits."""
    return "fp8" if sm >= _NEEDS_SM["fp8"] else "int8 or int4_awq"


def check_method(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse what a method's engine cannot be combined with."""
    if request.method == "draft_model" and request.role == "target" and not reads_blocks(request):
        cache = request.kv_cache_quantization
        yield Rejection(
            f"the target of draft_model reads prompts behind cached blocks, which an {cache} KV "
            f"cache with {request.quantization} weights cannot",
            "use kv_cache_quantization: none, or fp8 together with quantization: fp8",
        )
    if request.model.guesser_module and request.quantization == "int8_sq":
        yield Rejection(
            f"engines of method {request.method} have no SmoothQuant weights",
            "use quantization: fp8, int8 or none",
        )


def check_model(request: BuildRequest, profile: Profile) -> Iterator[Rejection]:
    """Refuse models that the release has no class for, or whose class computes something else."""
    model, role = request.model, request.role
    release = tuple(int(n) for n in re.findall(r"\d+", profile.tensorrt_llm)[:2])
    if release < model.upstream_since:
        first = ".".join(map(str, model.upstream_since))
        yield Rejection(
            f"{role}: TensorRT-LLM has {model.architecture} from {first} on, not in "
            f"{profile.tensorrt_llm}",
            f"leave engine.tensorrt_llm out for {DEFAULT.tensorrt_llm}, or use backend: openvino",
        )
    for limit in model.upstream_limits:
        yield Rejection(
            f"{role}: TensorRT-LLM's {model.architecture} {limit}", "use backend: openvino"
        )
    window = model.sliding_window
    if window is not None and request.max_seq_len > window:
        why = (
            f"method {request.method} takes rows of the KV cache back, which TensorRT-LLM does not "
            "do for such layers"
            if request.method in REWINDING
            else "an engine sees all of them unless its server is told otherwise, which this "
            "release does not do"
        )
        yield Rejection(
            f"{role}: layers see the last {window} tokens, but engine.max_seq_len is "
            f"{request.max_seq_len}; {why}",
            f"set engine.max_seq_len to {window} or less, or use backend: openvino",
        )


def check_ranks(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse cuts that do not come out even."""
    tp, pp = request.parallel.tp_size, request.parallel.pp_size
    if tp < 1 or pp < 1:
        return
    yield from check_parallel(request.model, request.parallel, request.role)
    if tp * pp > 16:
        yield Rejection(
            f"{tp * pp} ranks are more than two machines of 8 GPUs",
            "lower engine.tp_size or engine.pp_size",
        )
    elif tp > 8:
        yield Rejection(
            f"tp_size {tp} reaches across machines of 8 GPUs, where every layer would wait for the "
            "network",
            f"set engine.tp_size: 8 and engine.pp_size: {tp * pp // 8}",
        )
