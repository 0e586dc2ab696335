"""`specpipe tune`: record answers, time steps, replay all settings, measure the best one."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import PLAIN, Lookahead, NoSpeculation, Speculation, redrafter_of
from specpipe.core.contracts import Sampling
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.batcher import finish
from specpipe.runtime.budget import Budget
from specpipe.speculate.decode import Limits, Step
from specpipe.tune.candidates import candidates
from specpipe.tune.cost import CostCurve, Costs, measure_costs
from specpipe.tune.replay import PricedBudget, ReplayedStep, priced, replay
from specpipe.tune.trace import DrafterKind, Trace, head_accuracy, record

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
    deployment: Runtime
    end_ids: tuple[int, ...]
    fit: list[Trace]  # settings are chosen on these
    held: list[Trace]  # and checked on these
    costs: Costs
    elsewhere: bool  # the costs are not those of this machine


def observe(
    config: RunConfig,
    deployment: Runtime,
    prompts: Sequence[Sequence[int]],
    end_ids: tuple[int, ...],
    *,
    costs: Costs | None = None,
    progress: Progress = lambda done, total: None,
) -> Observed:
    """Record the answers to all prompts, every second one held out, and time the engines.

    `costs` are those of another machine, for a choice that is meant for it.
    """
    traces = record(
        deployment,
        prompts,
        config.validate.max_tokens,
        end_ids,
        drafter=_drafter(config),
        budget=deployment.warm_up(),
        progress=progress,
    )
    fit, held = traces[::2], traces[1::2] or traces
    drafter = redrafter_of(config.speculation)
    here = costs or measure_costs(
        deployment.engines,
        fit[0].prompt,
        drafter=_drafter(config),
        beams=drafter.num_beams if drafter else 0,
    )
    elsewhere = costs is not None
    return Observed(config.speculation, deployment, end_ids, fit, held, here, elsewhere=elsewhere)


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
    return sorted(found, key=lambda p: -round(p.speedup, 2))  # of equal ones, plain decoding first


def _possible(
    seen: Observed, method: Speculation, accuracy: Sequence[Sequence[float]]
) -> list[Speculation]:
    """Return the settings to try whose steps are shorter than the longest sequence."""
    longest = seen.deployment.facts["target"].max_seq_len
    return [c for c in candidates(method, accuracy) if c.num_draft_tokens + 1 < longest]


def _predict_all(seen: Observed, settings: Sequence[Speculation]) -> list[Prediction]:
    """Return the prediction of every setting for the fitting half, the best first."""
    found = [_predict(seen, options, seen.fit) for options in settings]
    return sorted(found, key=lambda p: -p.speedup)


def _drafter(config: RunConfig) -> DrafterKind | None:
    if config.drafter() is None:
        return None
    return "redrafter" if redrafter_of(config.speculation) else "heads"


def _predict(seen: Observed, options: Speculation, traces: Sequence[Trace]) -> Prediction:
    """Replay `options` and add up the step times; lookahead, which drafts with the target, is run.

    The first step is the prefill. It costs the same with all settings and is left out.
    """
    steps = tokens = 0
    ms, budget = 0.0, priced(seen.costs)
    for trace in traces:
        if isinstance(options, Lookahead):
            found = _run_steps(seen.deployment, options, trace, budget)
        else:
            found = replay(options, trace, seen.deployment, budget)
        found = found[1:]
        steps += len(found)
        tokens += sum(step.emitted for step in found)
        ms += price(seen.costs, found)
    plain = seen.costs.step(1)
    if not tokens:
        return Prediction(options, 1.0, plain, 1.0)
    return Prediction(options, tokens / steps, ms / tokens, plain * tokens / ms)


def price(costs: Costs, steps: Sequence[ReplayedStep]) -> float:
    """Return the milliseconds of one sequence's steps."""
    return sum(
        costs.step(step.rows)
        + step.propose_ms
        + costs.drafting_ms(step.head_calls, step.draft_calls)
        for step in steps
    )


def _run_steps(
    deployment: Runtime, options: Speculation, trace: Trace, budget: PricedBudget
) -> list[ReplayedStep]:
    served = replace(deployment, speculation=options)
    steps = serve_one(served, budget, trace.prompt, len(trace.output))
    rows = 1 + options.num_draft_tokens
    return [ReplayedStep(rows if s.drafted else 1, 0, len(s.tokens), 0.0) for s in steps]


def serve_one(
    deployment: Runtime,
    budget: Budget,
    prompt: Sequence[int],
    max_tokens: int,
    end_ids: tuple[int, ...] = (),
) -> Iterator[Step]:
    """Decode one prompt greedily as a server does, which keeps its budget between requests."""
    batcher = deployment.batcher(budget)
    decoding = deployment.decoding(prompt, Sampling(end_ids=end_ids), Limits(max_tokens))
    for event in finish(batcher, deployment.add(batcher, decoding)):
        if isinstance(event, Step):
            yield event


def measure_speedup(seen: Observed, options: Speculation) -> float:
    """Decode with and without `options` in turn; returns the ratio of the mean times per token."""
    if isinstance(options, NoSpeculation):
        return 1.0
    arms = {
        fast: (replace(seen.deployment, speculation=chosen), Budget(seen.costs.step.measured()))
        for fast, chosen in ((True, options), (False, PLAIN))
    }
    spent: dict[bool, list[float]] = {True: [], False: []}
    for turn, trace in enumerate(seen.held[:MEASURED]):
        for fast in (turn % 2 == 0, turn % 2 == 1):
            steps = serve_one(*arms[fast], trace.prompt, len(trace.output), seen.end_ids)
            spent[fast] += ms_a_token(steps)
    return statistics.mean(spent[False]) / statistics.mean(spent[True])


def ms_a_token(steps: Iterator[Step]) -> list[float]:
    """Return the time per token after the first step, which reads the prompt; [] if it was all."""
    next(steps)
    began = time.perf_counter_ns()
    tokens = sum(len(step.tokens) for step in steps)
    return [(time.perf_counter_ns() - began) / 1e6 / tokens] if tokens else []
