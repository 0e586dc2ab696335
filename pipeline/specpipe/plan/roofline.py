"""Estimate the time of a step on a GPU from its data sheet; nothing here was measured.

A step over n rows of b sequences reads the weights and b KV caches once and multiplies n b rows:

    t = max(bytes / (BANDWIDTH_SHARE bandwidth), 2 parameters n b / (FLOPS_SHARE throughput))
        + all-reduces + launches

(the roofline of Williams et al. 2009, with the shares that kernels reach). If each of K chained
draft tokens is accepted with probability a, a step emits (1 - a^(K+1)) / (1 - a) tokens
(2211.17192, equation 1), and the speed-up is tokens t(1) / (t(K+1) + drafting).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.core.model import ModelConfig
from specpipe.engine.backend import BuildRequest, Footprint
from specpipe.engine.gpus import Gpu

BANDWIDTH_SHARE = 0.75
FLOPS_SHARE = 0.6
LAUNCH_S = 5e-6  # a layer
ALL_REDUCE_S = 10e-6  # its latency
STEP_S = 100e-6  # scheduling and sampling
PCIE_GBS = 50.0  # both directions together, without NVLink
HANDOVER_MS = 1.0  # a request from Triton's loop to an engine and back
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Reached:
    """What kernels and launches make of the figures of a data sheet; assumed, not measured."""

    bandwidth_share: float = BANDWIDTH_SHARE
    flops_share: float = FLOPS_SHARE
    launch_s: float = LAUNCH_S
    all_reduce_s: float = ALL_REDUCE_S
    step_s: float = STEP_S
    handover_ms: float = HANDOVER_MS


@dataclass(frozen=True)
class Placed:
    """An engine on a GPU, with sequences of `context` tokens in the KV cache."""

    gpu: Gpu
    request: BuildRequest
    footprint: Footprint
    context: int
    reached: Reached = Reached()

    @property
    def heads_bytes(self) -> int:
        """Bytes of the heads or drafter that one draft step reads on each GPU, in 16 bits."""
        model, parallel = self.request.model, self.request.engine.parallel
        return 2 * model.drafter_parameters(model.vocab_size) // parallel.tp_size


def step_ms(engine: Placed, rows: float, sequences: int = 1) -> float:
    """Estimate the milliseconds of a step, heads apart, over `rows` rows of every sequence."""
    request, gpu = engine.request, engine.gpu
    tp, pp, tokens = (
        request.engine.parallel.tp_size,
        request.engine.parallel.pp_size,
        rows * sequences,
    )
    cache = engine.footprint.kv_per_token * engine.context * sequences
    part = engine.footprint
    weights = part.weights - part.looked_up - part.drafter - engine.heads_bytes
    moved = weights * touched(request.model, tokens) + cache
    reached = engine.reached
    memory = moved / (gpu.bandwidth_gbs * 1e9 * reached.bandwidth_share)
    work = 2 * multiplied(request.model) * tokens / (tp * pp)
    compute = work / (throughput(gpu, request.engine.quantization) * reached.flops_share)
    layers = request.model.num_hidden_layers / pp
    talk = layers * 2 * _all_reduce_s(engine, tokens) if tp > 1 else 0.0
    stage = max(memory, compute) + talk + layers * reached.launch_s
    return 1000 * (pp * stage + reached.step_s)


def _all_reduce_s(engine: Placed, tokens: float) -> float:
    """Return the seconds of a ring over the tensor-parallel ranks, in 16 bits."""
    gpu, request = engine.gpu, engine.request
    share = 2 * (request.engine.parallel.tp_size - 1) / request.engine.parallel.tp_size
    size = share * tokens * request.model.hidden_size * 2
    return engine.reached.all_reduce_s + size / ((gpu.nvlink_gbs or PCIE_GBS) * 1e9 / 2)


def multiplied(model: ModelConfig) -> int:
    """Return the parameters that a token is multiplied with: its experts, without the embedding."""
    tables = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    idle = 0.0
    if model.moe:
        idle = expert_parameters(model) * (1 - model.moe.top_k / model.moe.num_experts)
    return int(model.num_parameters - tables - idle)


def expert_parameters(model: ModelConfig) -> int:
    """Return the parameters of all experts."""
    if model.moe is None:
        return 0
    matrices = 3 if model.arithmetic.gated_mlp else 2
    one = matrices * model.expert_size * model.hidden_size
    return model.num_hidden_layers * model.moe.num_experts * one


def touched(model: ModelConfig, tokens: float) -> float:
    """Return the share of the weights that a step of `tokens` tokens reads.

    Every token uses `top_k` experts. If they are evenly distributed, (1 - k/E)^n are idle.
    """
    if model.moe is None:
        return 1.0
    idle = math.pow(1 - model.moe.top_k / model.moe.num_experts, tokens)
    return 1 - idle * expert_parameters(model) / model.num_parameters


def throughput(gpu: Gpu, quantization: str) -> float:
    """Return the operations a second of the type that an engine multiplies in."""
    fast = {"fp8": gpu.fp8_tflops, "int8_sq": gpu.int8_tops, "nvfp4": gpu.fp4_tflops}
    return (fast.get(quantization) or gpu.fp16_tflops) * 1e12


def guess_ms(engine: Placed) -> float:
    """Estimate the milliseconds in which heads draft a step's tokens.

    Medusa's heads draft all tokens at once; a ReDrafter drafts one token of all beams at a time.
    For each of them, a drafting layer and the output layer run once.
    """
    model, nodes = engine.request.model, engine.request.draft_nodes
    output = 2 * model.vocab_size * model.hidden_size // engine.request.engine.parallel.tp_size
    one = engine.footprint.drafter + output if engine.footprint.drafter else 0
    rounds = model.drafter_rounds
    moved = rounds * engine.heads_bytes + nodes * one
    reached = engine.reached
    launches = (rounds - 1 + (nodes if one else 0)) * reached.launch_s
    return 1000 * (moved / (engine.gpu.bandwidth_gbs * 1e9 * reached.bandwidth_share) + launches)


def gpu_costs(engine: Placed) -> dict[int, float]:
    """Return the estimated milliseconds of steps by their rows, as `tune` reads them."""
    return {rows: round(step_ms(engine, rows), 4) for rows in ROWS}


def chained_tokens(acceptance: float, drafted: int) -> float:
    """Return the tokens per step with a chain of draft tokens, the target's token included."""
    if acceptance == 1:
        return drafted + 1.0
    return (1 - acceptance ** (drafted + 1)) / (1 - acceptance)


@dataclass(frozen=True)
class Assumed:
    """An assumed acceptance, as a label and as tokens per step."""

    label: str
    tokens: float


@dataclass(frozen=True)
class EstimatedCase:
    """The estimated effect of an assumption."""

    assumed: Assumed
    speedup: float  # one sequence
    speedup_full: float  # a full batch
    pays: tuple[int, int] | None  # the smallest and largest batch at which it is faster


@dataclass(frozen=True)
class Estimate:
    """Step times and speed-ups; estimated, not measured."""

    context: int
    batch: int
    plain_ms: float  # one sequence, one row
    verify_ms: float  # one sequence, root and drafts
    draft_ms: float  # one token of the draft model
    heads_ms: float  # drafting by heads
    handover_ms: float  # of a speculative step
    break_even_tokens: float  # tokens per step from which speculation is faster, at batch 1
    cases: tuple[EstimatedCase, ...]
    costs: dict[int, float]


MOST_BATCH = 512


def estimate(
    target: Placed, draft: Placed | None, nodes: int, assumed: Sequence[Assumed]
) -> Estimate:
    """Estimate the step times of a deployment and the speed-up of each assumption."""
    batch = target.request.engine.max_batch_size
    cases = tuple(
        EstimatedCase(
            a,
            a.tokens / _price(target, draft, nodes, 1),
            a.tokens / _price(target, draft, nodes, batch),
            _paying(target, draft, nodes, a.tokens),
        )
        for a in assumed
    )
    return Estimate(
        context=target.context,
        batch=batch,
        plain_ms=step_ms(target, 1),
        verify_ms=step_ms(target, nodes + 1),
        draft_ms=step_ms(draft, 1) if draft else 0.0,
        heads_ms=guess_ms(target),
        handover_ms=2 * target.reached.handover_ms if draft else 0.0,
        break_even_tokens=_price(target, draft, nodes, 1),
        cases=cases,
        costs=gpu_costs(target),
    )


def _price(target: Placed, draft: Placed | None, nodes: int, batch: int) -> float:
    """Return the cost of a speculative step, in plain steps."""
    step = step_ms(target, nodes + 1, batch) + guess_ms(target)
    if draft:
        step += nodes * step_ms(draft, 1, batch) + 2 * target.reached.handover_ms
    return step / step_ms(target, 1, batch)


def _paying(
    target: Placed, draft: Placed | None, nodes: int, tokens: float
) -> tuple[int, int] | None:
    """Return the smallest and largest batch at which steps of that many tokens are faster.

    One sequence may be too few: a single row reads few experts, and draft tokens read more.
    """
    batches = range(1, MOST_BATCH + 1)
    pays = [b for b in batches if tokens > _price(target, draft, nodes, b)]
    return (pays[0], pays[-1]) if pays else None
