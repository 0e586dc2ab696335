"""Facts about a run of TensorRT-LLM engines that may surprise but do not forbid it."""

from collections.abc import Iterator

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import REWINDING, Medusa, ReDrafter
from specpipe.config.upstream_methods import Eagle
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import Gpu


def engine_notes(config: RunConfig, target: ModelConfig, gpu: Gpu | None) -> Iterator[str]:
    """Yield facts about a run that may surprise but do not forbid it."""
    engine, method = config.engine, config.speculation.method
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
