"""`specpipe tune`: record answers, time steps, replay every setting, run the best one for real."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from specpipe.assembly import Deployment, Slot
from specpipe.config import RunConfig
from specpipe.contracts import Role, Runner, Sampling
from specpipe.methods import Lookahead, NoSpeculation, Speculation
from specpipe.speculate.decode import Limits
from specpipe.tune.candidates import candidates
from specpipe.tune.cost import CostCurve, measure_cost
from specpipe.tune.replay import ReplayedStep, replay
from specpipe.tune.trace import Trace, guess_ms, head_accuracy, record

MOST_ROWS = 65  # root and the widest tree that is tried
GAIN = 1.03  # a setting must promise this much, or plain decoding is chosen
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """What a setting is expected to do, one request at a time."""

    options: Speculation
    tokens_a_step: float
    ms_a_token: float
    speedup: float  # over plain decoding


@dataclass(frozen=True)
class Tuning:
    """What was found, with the figures behind it."""

    best: Speculation  # NoSpeculation: do not speculate
    tried: tuple[Prediction, ...]  # on the fitting half of the prompts, the best first
    holdout: Prediction  # the best one on the other half
    measured_speedup: float  # of the best one on the other half, in this process; 1 for plain
    cost: CostCurve
    break_even_batch: int  # for an engine that batches; see `CostCurve.break_even_batch`
    accuracy: tuple[tuple[float, ...], ...]  # of the heads, [heads, ranks]; empty without heads


@dataclass(frozen=True)
class _Bench:
    """The engines and what their parts cost."""

    deployment: Deployment
    cost: CostCurve
    heads_ms: float
    draft_ms: float

    @property
    def pads(self) -> bool:
        return self.deployment.engines["target"].pads_steps


def tune(
    config: RunConfig,
    deployment: Deployment,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    *,
    progress: Progress = lambda done, total: None,
) -> Tuning:
    """Choose the settings of the run's method for these prompts, on this machine.

    Every second prompt is held out: the choice is made on the others and checked there.
    """
    runners = {role: engine.runner() for role, engine in deployment.engines.items()}
    traces = _record_all(config, runners, prompts, end_id, progress)
    fit, held = traces[::2], traces[1::2] or traces
    bench = _measure(deployment, runners, fit[0].prompt, has_heads=bool(fit[0].guesses))
    accuracy = head_accuracy(fit)
    tried = [_predict(bench, options, fit) for options in candidates(config.speculation, accuracy)]
    tried.sort(key=lambda found: -found.speedup)
    best: Speculation = NoSpeculation()
    if tried and tried[0].speedup >= GAIN:
        best = tried[0].options
    holdout = _predict(bench, best, held)
    rows = 1 + best.num_draft_tokens
    return Tuning(
        best,
        tuple(tried),
        holdout,
        measure_speedup(deployment, best, held, end_id),
        bench.cost,
        bench.cost.break_even_batch(rows, holdout.tokens_a_step),
        tuple(map(tuple, accuracy)),
    )


def _record_all(
    config: RunConfig,
    runners: Mapping[Role, Runner],
    prompts: Sequence[Sequence[int]],
    end_id: int,
    progress: Progress,
) -> list[Trace]:
    traces = []
    for number, prompt in enumerate(prompts):
        most = config.validate.max_tokens
        has_heads = config.heads() is not None
        traces.append(record(runners, prompt, most, end_id, has_heads=has_heads))
        progress(number + 1, len(prompts))
    return traces


def _measure(
    deployment: Deployment,
    runners: Mapping[Role, Runner],
    prefix: Sequence[int],
    *,
    has_heads: bool,
) -> _Bench:
    most = min(MOST_ROWS, deployment.engines["target"].max_seq_len - len(prefix))
    cost = measure_cost(runners["target"], prefix, most)
    heads = guess_ms(runners["target"]) if has_heads else 0.0
    draft = measure_cost(runners["draft"], prefix, 2).ms[0] if "draft" in runners else 0.0
    return _Bench(deployment, cost, heads, draft)


def _predict(bench: _Bench, options: Speculation, traces: Sequence[Trace]) -> Prediction:
    """Replay `options` and price every step; lookahead, which guesses with the target, is run.

    The first step, which reads the prompt, costs the same whatever is guessed and is left out.
    """
    engine = bench.deployment.engines["target"]
    steps = tokens = 0
    ms = 0.0
    for trace in traces:
        if isinstance(options, Lookahead):
            found = _run_steps(bench.deployment, options, trace)
        else:
            found = replay(options, trace, engine.vocab_size, engine.max_seq_len)
        found = found[1:]
        steps += len(found)
        tokens += sum(step.emitted for step in found)
        ms += sum(_price(bench, options, found))
    if not tokens:
        return Prediction(options, 1.0, bench.cost(1), 1.0)
    return Prediction(options, tokens / steps, ms / tokens, bench.cost(1) * tokens / ms)


def _price(bench: _Bench, options: Speculation, steps: Sequence[ReplayedStep]) -> list[float]:
    prices, width = [], 0
    for step in steps:
        if step.rows > 1 and bench.pads:
            width = 1 + options.num_draft_tokens
        asked = step.rows > 1
        extra = asked * bench.heads_ms + step.depth * bench.draft_ms
        prices.append(bench.cost(max(step.rows, width)) + step.propose_ms + extra)
    return prices


def _run_steps(deployment: Deployment, options: Speculation, trace: Trace) -> list[ReplayedStep]:
    slot = replace(deployment, speculation=options).slot()
    steps = slot.decode(trace.prompt, Sampling(), Limits(len(trace.output)))
    return [ReplayedStep(1 + options.num_draft_tokens, 0, len(s.tokens), 0.0) for s in steps]


def measure_speedup(
    deployment: Deployment, options: Speculation, traces: Sequence[Trace], end_id: int
) -> float:
    """Decode with and without `options` in turn; returns the ratio of the mean times per token."""
    if isinstance(options, NoSpeculation):
        return 1.0
    slots = {
        fast: replace(deployment, speculation=chosen).slot()
        for fast, chosen in ((True, options), (False, NoSpeculation()))
    }
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn, trace in enumerate(traces):
        for fast in (turn % 2 == 0, turn % 2 == 1):
            spent[fast] += _ms_a_token(slots[fast], trace, end_id)
    return statistics.mean(spent[False]) / statistics.mean(spent[True])


def _ms_a_token(slot: Slot, trace: Trace, end_id: int) -> list[float]:
    """Return the time per token after the first step, which reads the prompt; [] if it was all."""
    limits, sampling = Limits(len(trace.output)), Sampling(end_id=end_id)
    steps = slot.decode(trace.prompt, sampling, limits)
    next(steps)
    began = time.perf_counter_ns()
    tokens = sum(len(step.tokens) for step in steps)
    return [(time.perf_counter_ns() - began) / 1e6 / tokens] if tokens else []
