"""The estimate of a plan (step times and speed-ups), and its notes on the engines."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.config.speculation import (
    REWINDING,
    DFlash,
    Eagle,
    InGraph,
    Lookahead,
    Medusa,
    NoSpeculation,
    Pard,
    ReDrafter,
)
from specpipe.core.contracts import Role
from specpipe.core.machine import emulates_bfloat16
from specpipe.core.model import ModelConfig
from specpipe.core.trees import TreePath, assumed_accuracy, expected_tokens, supposed_accuracy
from specpipe.engine.backend import BuildRequest, Footprint
from specpipe.engine.tensorrt.profiles import profile_of
from specpipe.plan.gpus import Gpu
from specpipe.plan.roofline import Assumed, Estimate, Placed, chained_tokens, estimate

_RATES = (0.6, 0.7, 0.8, 0.9)
_TOKENS = (1.5, 2.0, 2.5)
_FIRST_TOKENS = (0.5, 0.6, 0.7)

Accuracy = Sequence[Sequence[float]]


def outlook(
    config: RunConfig,
    requests: Mapping[Role, BuildRequest],
    footprints: Mapping[Role, Footprint],
    gpu: Gpu,
    accuracy: Accuracy | None,
) -> Estimate:
    """Estimate step times and speed-ups at a context of half the maximum length."""
    context = config.engine.max_seq_len // 2
    placed = {r: Placed(gpu, requests[r], footprints[r], context) for r in requests}
    nodes = config.speculation.num_draft_tokens
    return estimate(placed["target"], placed.get("draft"), nodes, assumptions(config, accuracy))


def assumptions(config: RunConfig, accuracy: Accuracy | None) -> list[Assumed]:
    """Return the acceptance to assume for a run; only calibrated heads have measured values."""
    options = config.speculation
    if isinstance(options, NoSpeculation):
        return []
    if isinstance(options, Medusa) and not isinstance(options.tree, str):
        heads = max(len(path) for path in options.tree)
        tokens = expected_tokens(accuracy or assumed_accuracy(heads), options.tree)
        return [Assumed("as calibrated" if accuracy else "typical Medusa heads", tokens)]
    if isinstance(options, Eagle) and not isinstance(options.tree, str):
        return [_first_accepted(options, options.tree, rate) for rate in _FIRST_TOKENS]
    if isinstance(options, Lookahead):
        return [Assumed("assumed", tokens) for tokens in _TOKENS]
    if isinstance(options, ReDrafter) and accuracy:
        first_beam = [(0,) * n for n in range(1, options.draft_len_per_beam + 1)]
        tokens = expected_tokens(accuracy, first_beam[: len(accuracy)])
        return [Assumed("as calibrated, first beam only", tokens)]
    beam = options.draft_len_per_beam if isinstance(options, ReDrafter) else None
    drafted = beam or options.num_draft_tokens
    return [Assumed(f"acceptance {rate:.0%}", chained_tokens(rate, drafted)) for rate in _RATES]


def _first_accepted(options: Eagle, tree: Sequence[TreePath], rate: float) -> Assumed:
    accuracy = supposed_accuracy(options.num_eagle_layers, rate)
    return Assumed(f"first token accepted {rate:.0%}", expected_tokens(accuracy, tree))


def engine_notes(config: RunConfig, target: ModelConfig, gpu: Gpu | None) -> Iterator[str]:
    """Yield facts about a run that may surprise but do not forbid it."""
    engine, method = config.engine, config.speculation.method
    if engine.backend == "llmapi":
        yield from _sampling_notes(config)
        yield from _release_notes(config)
    if engine.backend != "tensorrt":
        return
    if isinstance(config.speculation, Medusa | Eagle):
        yield (
            f"engines of method {method} accept a draft token if it is the target's most likely "
            "token and ignore the sampling options of a request; send greedy requests"
        )
    if isinstance(config.speculation, Eagle) and engine.quantization != "none":
        yield (
            "TensorRT-LLM documents EAGLE for float16 and bfloat16 weights, not for "
            f"{engine.quantization} weights; the drafter stays in 16 bits"
        )
    if isinstance(config.speculation, ReDrafter):
        yield from _beam_notes(config.speculation, engine.quantization)
    if method == "draft_model" and engine.pp_size > 1:
        yield "TensorRT-LLM documents draft_model with tensor parallelism, not with pipeline stages"
    if gpu is None:
        return
    if gpu.sm // 10 == 10 and method in REWINDING:  # kernels/xqaDispatcher.cpp
        yield (
            f"TensorRT-LLM 0.20 has no attention kernel for {method} on {gpu.name} (issue 6158), "
            "and its sources of late 2025 had none; it is not known whether 1.2.1 has one; try a "
            "small model first"
        )
    if method in REWINDING:
        yield from _group_notes(target, gpu, engine.kv_cache_quantization)
    if engine.tp_size > 1 and not gpu.nvlink_gbs:
        yield f"{gpu.name} has no NVLink: the {engine.tp_size} ranks communicate over PCIe"


def _sampling_notes(config: RunConfig) -> Iterator[str]:
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


def cpu_notes(engine: EngineOptions, kinds: Collection[str]) -> Iterator[str]:
    """Yield a note if the CPU engine of a run computes in bfloat16 and the CPU cannot."""
    if engine.backend != "openvino" or engine.quantization != "none":
        return
    if engine.dtype == "bfloat16" and emulates_bfloat16(kinds):
        yield (
            "this CPU has neither avx512_bf16 nor amx_bf16, so it computes bfloat16 with float32 "
            "instructions; engine.dtype: float32 is as fast or faster here, and its output is exact"
        )


def _release_notes(config: RunConfig) -> Iterator[str]:
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


def _group_notes(target: ModelConfig, gpu: Gpu, cache: str) -> Iterator[str]:
    """Check the number of query heads that share a key-value head.

    TensorRT-LLM 1.x (`decoderXQARunner.cpp`) verifies several tokens of a sequence with attention
    kernels for group sizes that divide 64. With an fp8 cache on compute capability 9.0 it has
    kernels for all sizes up to 64. Older kernels support even sizes.
    """
    group = target.num_attention_heads // target.num_key_value_heads
    if 64 % group and not (gpu.sm == 90 and cache == "fp8"):
        yield (
            f"{group} query heads share a key-value head; TensorRT-LLM has attention kernels for "
            "draft tokens only where this number divides 64; the engine may stop with `No "
            "available XQA kernels are found for speculative decoding mode`; test it first"
        )


def _beam_notes(options: ReDrafter, quantization: str) -> Iterator[str]:
    if options.greedy_search:
        yield (
            "ReDrafter engines with greedy_search accept a draft token if it is the target's most "
            "likely token and ignore the sampling options of a request; send greedy requests"
        )
    else:
        yield (
            "ReDrafter engines without greedy_search use only the temperature of a request and "
            "ignore top_k, top_p and penalties"
        )
    if quantization not in ("none", "fp8"):
        yield (
            "TensorRT-LLM documents ReDrafter with 16-bit and fp8 weights, not with "
            f"{quantization} weights"
        )
