"""What a plan says beside its engines: how fast it may become, and what to know beforehand."""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.building import BuildRequest, Footprint
from specpipe.config import RunConfig
from specpipe.contracts import Role
from specpipe.methods import REWINDING, Eagle, Lookahead, Medusa, NoSpeculation, ReDrafter
from specpipe.model import ModelConfig
from specpipe.plan.gpus import Gpu
from specpipe.plan.roofline import Assumed, Estimate, Placed, chained_tokens, estimate
from specpipe.trees import TreePath, assumed_accuracy, expected_tokens, supposed_accuracy

_RATES = (0.6, 0.7, 0.8, 0.9)
_TOKENS = (1.5, 2.0, 2.5)
_FIRST_GUESSES = (0.5, 0.6, 0.7)

Accuracy = Sequence[Sequence[float]]


def outlook(
    config: RunConfig,
    requests: Mapping[Role, BuildRequest],
    footprints: Mapping[Role, Footprint],
    gpu: Gpu,
    accuracy: Accuracy | None,
) -> Estimate:
    """Estimate step times and speed-ups behind sequences of half the longest length."""
    context = config.engine.max_seq_len // 2
    placed = {r: Placed(gpu, requests[r], footprints[r], context) for r in requests}
    nodes = config.speculation.num_draft_tokens
    return estimate(placed["target"], placed.get("draft"), nodes, assumptions(config, accuracy))


def assumptions(config: RunConfig, accuracy: Accuracy | None) -> list[Assumed]:
    """Return how well a run's guesses may be taken; measured only where heads are calibrated."""
    options = config.speculation
    if isinstance(options, NoSpeculation):
        return []
    if isinstance(options, Medusa) and not isinstance(options.tree, str):
        heads = max(len(path) for path in options.tree)
        tokens = expected_tokens(accuracy or assumed_accuracy(heads), options.tree)
        return [Assumed("as calibrated" if accuracy else "as usual heads guess", tokens)]
    if isinstance(options, Eagle) and not isinstance(options.tree, str):
        return [_first_right(options, options.tree, rate) for rate in _FIRST_GUESSES]
    if isinstance(options, Lookahead):
        return [Assumed("supposed", tokens) for tokens in _TOKENS]
    if isinstance(options, ReDrafter) and accuracy:
        first_beam = [(0,) * n for n in range(1, options.draft_len_per_beam + 1)]
        tokens = expected_tokens(accuracy, first_beam[: len(accuracy)])
        return [Assumed("as calibrated, the first beam alone", tokens)]
    beam = options.draft_len_per_beam if isinstance(options, ReDrafter) else None
    drafted = beam or options.num_draft_tokens
    return [Assumed(f"{rate:.0%} accepted", chained_tokens(rate, drafted)) for rate in _RATES]


def _first_right(options: Eagle, tree: Sequence[TreePath], rate: float) -> Assumed:
    accuracy = supposed_accuracy(options.num_eagle_layers, rate)
    return Assumed(f"{rate:.0%} of first guesses right", expected_tokens(accuracy, tree))


def engine_notes(config: RunConfig, target: ModelConfig, gpu: Gpu | None) -> Iterator[str]:
    """Yield what does not forbid a run, but may surprise."""
    engine, method = config.engine, config.speculation.method
    if engine.backend != "tensorrt":
        return
    if isinstance(config.speculation, Medusa | Eagle):
        yield (
            f"engines of method {method} accept what equals the target's most likely token, "
            "whatever a request asks for; send greedy requests"
        )
    if isinstance(config.speculation, Eagle) and engine.quantization != "none":
        yield (
            "upstream documents EAGLE for weights in float16 and bfloat16, not for "
            f"{engine.quantization} ones; the drafter stays in 16 bits"
        )
    if isinstance(config.speculation, ReDrafter):
        yield from _beam_notes(config.speculation, engine.quantization)
    if method in ("draft_model", "medusa") and engine.pp_size > 1:
        yield f"upstream documents {method} with tensor parallelism, not with pipeline stages"
    if gpu is None:
        return
    if gpu.sm // 10 == 10 and method in REWINDING:  # kernels/xqaDispatcher.cpp
        yield (
            f"on {gpu.name} engines of 0.20 stopped for want of an attention kernel for {method} "
            "(TensorRT-LLM issue 6158), and upstream's sources had none in late 2025; whether "
            "1.2.1 has is not known: try a small model first"
        )
    if method in REWINDING:
        yield from _group_notes(target, gpu, engine.kv_cache_quantization)
    if engine.tp_size > 1 and not gpu.nvlink_gbs:
        yield f"{gpu.name} has no NVLink: each of {engine.tp_size} ranks talks over PCIe"


def _group_notes(target: ModelConfig, gpu: Gpu, cache: str) -> Iterator[str]:
    """Look at the query heads that share a key-value head.

    After upstream's `decoderXQARunner.cpp` of 1.x: several tokens of a sequence at a time are
    attended to by kernels for groups that divide 64, or, from an fp8 cache on compute capability
    9.0, of up to 64; older kernels take even groups.
    """
    group = target.num_attention_heads // target.num_key_value_heads
    if 64 % group and not (gpu.sm == 90 and cache == "fp8"):
        yield (
            f"{group} query heads share a key-value head; upstream's sources have attention "
            "kernels for drafts where that number divides 64: the engine may stop with `No "
            "available XQA kernels are found for speculative decoding mode`; try it first"
        )


def _beam_notes(options: ReDrafter, quantization: str) -> Iterator[str]:
    if options.greedy_search:
        yield (
            "ReDrafter engines with greedy_search accept what equals the target's most likely "
            "token, whatever a request asks for; send greedy requests"
        )
    else:
        yield (
            "ReDrafter engines without greedy_search sample by a request's temperature alone; "
            "top_k, top_p and penalties are not looked at"
        )
    if quantization not in ("none", "fp8"):
        yield f"upstream documents ReDrafter with 16-bit and fp8 weights, not with {quantization}"
