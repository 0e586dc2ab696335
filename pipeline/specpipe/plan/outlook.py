"""The estimate of a plan (step times and speed-ups), and its notes on the engines."""

from collections.abc import Collection, Iterator, Mapping, Sequence

from specpipe.config.run_config import EngineOptions, RunConfig
from specpipe.config.speculation import Lookahead, Medusa, NoSpeculation, ReDrafter
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Role
from specpipe.core.machine import emulates_bfloat16
from specpipe.core.trees import TreePath, assumed_accuracy, expected_tokens, supposed_accuracy
from specpipe.engine.backend import BuildRequest, Footprint
from specpipe.engine.gpus import Gpu
from specpipe.plan.roofline import Assumed, Estimate, Placed, Reached, chained_tokens, estimate

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
    reached: Reached | None = None,
) -> Estimate:
    """Estimate step times and speed-ups at a context of half the maximum length.

    `reached` are shares of the figures of the data sheet other than the usual ones.
    """
    context, reached = config.engine.max_seq_len // 2, reached or Reached()
    placed = {r: Placed(gpu, requests[r], footprints[r], context, reached) for r in requests}
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


def cpu_notes(engine: EngineOptions, kinds: Collection[str]) -> Iterator[str]:
    """Yield a note if the CPU engine of a run computes in bfloat16 and the CPU cannot."""
    if not engine.traits.own_engine or engine.quantization != "none":
        return
    if engine.dtype == "bfloat16" and emulates_bfloat16(kinds):
        yield (
            "this CPU has neither avx512_bf16 nor amx_bf16, so it computes bfloat16 with float32 "
            "instructions; engine.dtype: float32 is as fast or faster here, and its output is exact"
        )
