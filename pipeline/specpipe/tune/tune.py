"""`specpipe tune`: record answers, time steps, replay all settings, measure the best one."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from specpipe.assembly import Deployment, Slot
from specpipe.config import RunConfig
from specpipe.contracts import Role, Runner, Sampling
from specpipe.methods import PLAIN, Lookahead, NoSpeculation, Speculation, drafter_of
from specpipe.speculate.decode import Limits
from specpipe.tune.candidates import candidates
from specpipe.tune.cost import CostCurve, Costs, measure_costs
from specpipe.tune.replay import ReplayedStep, replay
from specpipe.tune.trace import GuesserKind, Trace, head_accuracy, record

GAIN = 1.03  # a setting must promise this much, or plain decoding is chosen
MEASURED = 4  # held-out prompts that the choice is run on: plain decoding of more takes too long
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """The predicted figures of a setting, at concurrency 1."""

    options: Speculation
    tokens_a_step: float
    ms_a_token: float
    speedup: float  # over plain decoding


@dataclass(frozen=True)
class Tuning:
    """The best settings and their figures."""

    best: Speculation  # NoSpeculation: do not speculate
    tried: tuple[Prediction, ...]  # on the fitting half of the prompts, the best first
    holdout: Prediction  # the best one on the other half
    measured_speedup: float | None  # of the best one on `MEASURED` of those; None: elsewhere
    cost: CostCurve
    break_even_batch: int  # for an engine that batches; see `CostCurve.break_even_batch`
    accuracy: tuple[tuple[float, ...], ...]  # of the heads, [heads, ranks]; empty without heads


@dataclass(frozen=True)
class Observed:
    """A run's recorded answers, in two halves, and what its engines cost."""

    speculation: Speculation
    deployment: Deployment
    target: Runner  # answers for its drafter in replays
    end_ids: tuple[int, ...]
    fit: list[Trace]  # settings are chosen on these
    held: list[Trace]  # and checked on these
    costs: Costs
    elsewhere: bool  # the costs are not those of this machine


def observe(
    config: RunConfig,
    deployment: Deployment,
    prompts: Sequence[Sequence[int]],
    end_ids: tuple[int, ...],
    *,
    costs: Costs | None = None,
    progress: Progress = lambda done, total: None,
) -> Observed:
    """Record the answers to all prompts, every second one held out, and time the engines.

    `costs` are those of another machine, for a choice that is meant for it.
    """
    runners = {role: engine.runner() for role, engine in deployment.engines.items()}
    traces = _record_all(config, runners, prompts, end_ids, progress)
    fit, held = traces[::2], traces[1::2] or traces
    here = costs or measure_costs(
        deployment.engines,
        runners,
        fit[0].prompt,
        guesser=_guesser(config),
        beams=drafter.num_beams if (drafter := drafter_of(config.speculation)) else 0,
    )
    return Observed(
        config.speculation,
        deployment,
        runners["target"],
        end_ids,
        fit,
        held,
        here,
        elsewhere=costs is not None,
    )


def tune(seen: Observed) -> Tuning:
    """Choose the settings of the run's method; measure the best one on held-out prompts."""
    accuracy = head_accuracy(seen.fit)
    tried = _predict_all(seen, _possible(seen, seen.speculation, accuracy))
    worth_it = bool(tried) and tried[0].speedup >= GAIN
    best = tried[0].options if worth_it else PLAIN
    holdout = _predict(seen, best, seen.held)
    step = seen.costs.step
    return Tuning(
        best,
        tuple(tried),
        holdout,
        None if seen.elsewhere else measure_speedup(seen, best),
        step,
        step.break_even_batch(1 + best.num_draft_tokens, holdout.tokens_a_step),
        tuple(map(tuple, accuracy)),
    )


def recommend(seen: Observed, methods: Sequence[Speculation]) -> list[Prediction]:
    """Return plain decoding and every method at its best, the fastest first.

    Settings are chosen on one half of the prompts, the figures are those of the other.
    """
    accuracy = head_accuracy(seen.fit)
    tried = [_predict_all(seen, _possible(seen, method, accuracy)) for method in methods]
    best = [predictions[0].options for predictions in tried if predictions]
    found = [_predict(seen, options, seen.held) for options in (PLAIN, *best)]
    return sorted(found, key=lambda p: -p.speedup)


def _possible(
    seen: Observed, method: Speculation, accuracy: Sequence[Sequence[float]]
) -> list[Speculation]:
    """Return the settings to try whose steps are shorter than the longest sequence."""
    longest = seen.deployment.engines["target"].max_seq_len
    return [c for c in candidates(method, accuracy) if c.num_draft_tokens + 1 < longest]


def _predict_all(seen: Observed, settings: Sequence[Speculation]) -> list[Prediction]:
    """Return the prediction of every setting for the fitting half, the best first."""
    found = [_predict(seen, options, seen.fit) for options in settings]
    return sorted(found, key=lambda p: -p.speedup)


def _record_all(
    config: RunConfig,
    runners: Mapping[Role, Runner],
    prompts: Sequence[Sequence[int]],
    end_ids: tuple[int, ...],
    progress: Progress,
) -> list[Trace]:
    traces = []
    for number, prompt in enumerate(prompts):
        most = config.validate.max_tokens
        traces.append(record(runners, prompt, most, end_ids, guesser=_guesser(config)))
        progress(number + 1, len(prompts))
    return traces


def _guesser(config: RunConfig) -> GuesserKind | None:
    if config.heads() is None:
        return None
    return "drafter" if drafter_of(config.speculation) else "heads"


def _predict(seen: Observed, options: Speculation, traces: Sequence[Trace]) -> Prediction:
    """Replay `options` and add up the step times; lookahead, which drafts with the target, is run.

    The first step is the prefill. It costs the same with all settings and is left out.
    """
    steps = tokens = 0
    ms = 0.0
    for trace in traces:
        if isinstance(options, Lookahead):
            found = _run_steps(seen.deployment, options, trace)
        else:
            found = replay(options, trace, seen.target)
        found = found[1:]
        steps += len(found)
        tokens += sum(step.emitted for step in found)
        ms += _price(seen.costs, options, found)
    plain = seen.costs.step(1)
    if not tokens:
        return Prediction(options, 1.0, plain, 1.0)
    return Prediction(options, tokens / steps, ms / tokens, plain * tokens / ms)


def _price(costs: Costs, options: Speculation, steps: Sequence[ReplayedStep]) -> float:
    """Return the milliseconds of one sequence's steps."""
    total, width, last = 0.0, 0, 0
    for step in steps:
        if step.rows > 1 and costs.pads_steps:
            width = 1 + options.num_draft_tokens
        rows = max(step.rows, width)
        total += costs.step(rows) + step.propose_ms
        total += costs.change_ms if last and rows != last else 0.0
        last = rows
        total += step.head_calls * costs.heads_ms + step.draft_calls * costs.draft_ms
        total += costs.handover_ms if step.draft_calls else 0.0
    return total


def _run_steps(deployment: Deployment, options: Speculation, trace: Trace) -> list[ReplayedStep]:
    slot = replace(deployment, speculation=options).slot()
    steps = slot.decode(trace.prompt, Sampling(), Limits(len(trace.output)))
    return [ReplayedStep(1 + options.num_draft_tokens, 0, len(s.tokens), 0.0) for s in steps]


def measure_speedup(seen: Observed, options: Speculation) -> float:
    """Decode with and without `options` in turn; returns the ratio of the mean times per token."""
    if isinstance(options, NoSpeculation):
        return 1.0
    slots = {
        fast: replace(seen.deployment, speculation=chosen).slot()
        for fast, chosen in ((True, options), (False, PLAIN))
    }
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn, trace in enumerate(seen.held[:MEASURED]):
        for fast in (turn % 2 == 0, turn % 2 == 1):
            spent[fast] += ms_a_token(slots[fast], trace.prompt, len(trace.output), seen.end_ids)
    return statistics.mean(spent[False]) / statistics.mean(spent[True])


def ms_a_token(
    slot: Slot, prompt: Sequence[int], max_tokens: int, end_ids: tuple[int, ...]
) -> list[float]:
    """Return the time per token after the first step, which reads the prompt; [] if it was all."""
    steps = slot.decode(prompt, Sampling(end_ids=end_ids), Limits(max_tokens))
    next(steps)
    began = time.perf_counter_ns()
    tokens = sum(len(step.tokens) for step in steps)
    return [(time.perf_counter_ns() - began) / 1e6 / tokens] if tokens else []
