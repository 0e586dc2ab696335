"""Reasons why vLLM cannot serve a run, also those that it does not check before it loads a model.

vLLM 0.32 itself finds pipeline stages with speculation on a CPU, and a draft vocabulary that the
ranks do not divide, only while it starts: with an AttributeError and an AssertionError.
"""

from collections.abc import Iterator

from specpipe.config.speculation import Eagle3, Medusa, WithLength
from specpipe.config.upstream_methods import MultiToken
from specpipe.core.errors import Rejection
from specpipe.core.trees import depth
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.check import check_cache, check_ranks
from specpipe.engine.vllm.releases import default_release


def check(request: BuildRequest) -> list[Rejection]:
    """Return every reason why the release cannot serve a request."""
    return [
        *_check_method(request),
        *_check_options(request),
        *_check_formats(request),
        *_check_machine(request),
        *check_ranks(request),
        *_check_experts(request),
    ]


def _check_method(request: BuildRequest) -> Iterator[Rejection]:
    release = default_release()
    if request.method not in ("none", *release.methods):
        yield Rejection(
            f"vLLM {release.name} does not support method {request.method}",
            f"use one of these methods: none, {', '.join(sorted(release.methods))}",
        )


def _check_options(request: BuildRequest) -> Iterator[Rejection]:
    """Refuse options of a method for which SpeculativeConfig has no field."""
    options, found = request.speculation, []
    tree = getattr(options, "tree", "chain")
    chained = isinstance(tree, tuple) and depth(tree) == len(tree)
    if tree == "dynamic" or (isinstance(tree, tuple) and not chained):
        found.append("a speculation.tree with branches; it drafts chains")
    if isinstance(options, WithLength) and options.draft_length not in (None, "fixed"):
        found.append("speculation.draft_length")
    if isinstance(options, Medusa) and options.acceptance == "typical":
        found.append("speculation.acceptance: typical")
    if isinstance(options, Medusa) and options.draft_vocab_size is not None:
        found.append("speculation.draft_vocab_size")
    if getattr(options, "min_confidence", None) is not None:
        found.append("speculation.min_confidence")
    if getattr(getattr(options, "draft", None), "heads", None) is not None:
        found.append("speculation.draft.heads")
    if isinstance(options, Eagle3 | MultiToken):
        keys = ("sa_config", "use_rejection_sampling", "draft_len_schedule")
        found += [f"speculation.{key}" for key in keys if getattr(options, key)]
    if request.engine.tensorrt_llm is not None:
        found.append("engine.tensorrt_llm")
    for what in found:
        hint = "list one path, or set num_draft_tokens" if "chains" in what else "remove the key"
        yield Rejection(f"vLLM does not support {what}", hint)


def _check_formats(request: BuildRequest) -> Iterator[Rejection]:
    engine = request.engine
    if engine.quantization != "none":
        yield Rejection(
            "vLLM serves a Hugging Face model unchanged; specpipe does not quantize it to "
            f"{engine.quantization} for it",
            "set engine.quantization: none and set target.model to a quantized export",
        )
    if engine.kv_cache_quantization == "none":
        return
    if engine.kv_cache_quantization != "fp8" or engine.gpu is None:
        where = "on a CPU" if engine.gpu is None else "with vLLM"
        yield Rejection(
            f"specpipe serves no {engine.kv_cache_quantization} KV cache {where}",
            "use kv_cache_quantization: none" + (" or fp8" if engine.gpu else ""),
        )
    else:
        yield from check_cache(request)


def _check_machine(request: BuildRequest) -> Iterator[Rejection]:
    engine, pp_size = request.engine, request.engine.parallel.pp_size
    if engine.gpu is not None and engine.dtype == "float32":
        yield Rejection(
            "engine.dtype is float32 (the default), which specpipe does not serve on GPUs",
            "set engine.dtype: bfloat16 or float16",
        )
    if engine.gpu is None and pp_size > 1 and request.method != "none":
        yield Rejection(
            f"vLLM on a CPU does not speculate over pipeline stages, and engine.pp_size is "
            f"{pp_size}: its workers of the first stage have no drafter",
            "set engine.pp_size: 1, or use method: none",
        )


def _check_experts(request: BuildRequest) -> Iterator[Rejection]:
    parallel = request.engine.parallel
    if parallel.moe_ep_size not in (1, parallel.tp_size):
        yield Rejection(
            f"engine.moe_ep_size is {parallel.moe_ep_size} of {parallel.tp_size} ranks; vLLM "
            "distributes whole experts over all ranks (--enable-expert-parallel) or splits each",
            f"set engine.moe_ep_size to 1 or {parallel.tp_size}",
        )
