"""`specpipe tune`: record answers, time steps, replay all settings, measure the best one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import PLAIN, Lookahead, Speculation, eagle3_of, redrafter_of
from specpipe.runtime.assembly import Runtime
from specpipe.tune.candidates import candidates
from specpipe.tune.cost import Costs, measure_costs
from specpipe.tune.machine_load import LoadWatch, watch
from specpipe.tune.race import Arms, finalists, measure, serve_one
from specpipe.tune.replay import PricedBudget, ReplayedRound, ReplayedStep, priced, replay
from specpipe.tune.result import GAIN, Prediction, Raced, Recommendation, Tuning
from specpipe.tune.trace import DrafterKind, Trace, head_accuracy, record

Progress = Callable[[int, int], None]


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
    watch: LoadWatch = field(default_factory=watch)
    streams: int = 1  # that are decoded at a time
    _plain: dict[int, float] = field(default_factory=dict)  # by traces

    def plain_ms(self, traces: Sequence[Trace]) -> float:
        """Return the milliseconds per token of plain decoding."""
        if id(traces) not in self._plain:
            found = _cost_of(self, PLAIN, traces)
            self._plain[id(traces)] = found.ms / max(1, found.tokens)
        return self._plain[id(traces)]


def observe(
    config: RunConfig,
    deployment: Runtime,
    prompts: Sequence[Sequence[int]],
    end_ids: tuple[int, ...],
    *,
    costs: Costs | None = None,
    watching: LoadWatch | None = None,
    streams: int = 1,
    progress: Progress = lambda done, total: None,
) -> Observed:
    """Record the answers to all prompts, every second one held out, and time the engines.

    `costs` are those of another machine, for a choice that is meant for it.
    """
    watching = (watching or watch()).start()
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
    drafter = redrafter_of(config.speculation) or eagle3_of(config.speculation)
    here = costs or measure_costs(
        deployment,
        fit,
        drafter=_drafter(config),
        beams=drafter.num_beams if drafter else 0,
        streams=streams,
    )
    return Observed(
        config.speculation, deployment, end_ids, fit, held, here,
        streams=streams,
        elsewhere=costs is not None, watch=watching,
    )  # fmt: skip


def tune(seen: Observed) -> Tuning:
    """Choose the settings of the run's method: the fastest of the settings that promise most.

    Those are decoded on held-out prompts. With the costs of another machine, the prediction
    decides.
    """
    accuracy = head_accuracy(seen.fit)
    tried = _predict_all(seen, _possible(seen, seen.speculation, accuracy))
    measured = () if seen.elsewhere else _race(seen, finalists(tried))
    best = _best(tried, measured, elsewhere=seen.elsewhere)
    holdout = _predict(seen, best, seen.held)
    step = seen.costs.step
    return Tuning(
        best,
        tuple(tried),
        holdout,
        measured,
        step,
        step.break_even_batch(1 + best.num_draft_tokens, holdout.tokens_a_step),
        tuple(map(tuple, accuracy)),
        seen.elsewhere,
        seen.watch.read(),
        seen.costs.estimated,
    )


def _race(seen: Observed, chosen: Sequence[Prediction]) -> tuple[Raced, ...]:
    arms = Arms(seen.deployment, seen.costs, seen.end_ids, seen.streams)
    return measure(arms, seen.held, chosen)


def _best(
    tried: Sequence[Prediction], measured: Sequence[Raced], *, elsewhere: bool
) -> Speculation:
    """Return the setting that is faster than plain decoding, by measurement where there is one."""
    if elsewhere:
        promises = bool(tried) and tried[0].speedup >= GAIN
        return tried[0].options if promises else PLAIN
    reaches = bool(measured) and measured[0].overall >= GAIN
    return measured[0].options if reaches else PLAIN


def recommend(seen: Observed, methods: Sequence[Speculation]) -> Recommendation:
    """Return plain decoding and every method at its best, the fastest first.

    Settings are chosen on one half of the prompts, the figures are those of the other. The methods
    are then decoded in turn, unless the costs are those of another machine.
    """
    accuracy = head_accuracy(seen.fit)
    tried = [_predict_all(seen, _possible(seen, method, accuracy)) for method in methods]
    best = [predictions[0] for predictions in tried if predictions]
    measured = () if seen.elsewhere else _race(seen, best)
    found = [_predict(seen, options, seen.held) for options in (PLAIN, *(p.options for p in best))]
    ordered = sorted(found, key=lambda p: -_speed(p, measured))  # of equal ones, plain is first
    if _speed(ordered[0], measured) < GAIN:
        ordered.sort(key=lambda p: p.options != PLAIN)
    return Recommendation(tuple(ordered), measured, seen.watch.read())


def _speed(found: Prediction, measured: Sequence[Raced]) -> float:
    """Return the measured speed-up; the predicted one of what was not decoded."""
    return next((m.overall for m in measured if m.options == found.options), found.speedup)


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
    if eagle3_of(config.speculation) is not None:
        return "eagle3"
    return "redrafter" if redrafter_of(config.speculation) else "heads"


def _predict(seen: Observed, options: Speculation, traces: Sequence[Trace]) -> Prediction:
    """Replay `options` and plain decoding, and compare their prices.

    Lookahead, which drafts with the target, is run. Rounds in which a prompt is read cost the same
    with all settings and are left out, as are those of fewer streams, at the end.
    """
    found = _cost_of(seen, options, traces)
    if not found.tokens:
        return Prediction(options, 1.0, seen.costs.step(1), 1.0)
    return Prediction(
        options, found.tokens / found.steps, found.ms / found.tokens,
        seen.plain_ms(traces) * found.tokens / found.ms,
    )  # fmt: skip


@dataclass(frozen=True)
class Priced:
    """The price of the rounds that read no prompt."""

    ms: float
    steps: int
    tokens: int


def _cost_of(seen: Observed, options: Speculation, traces: Sequence[Trace]) -> Priced:
    budget = priced(seen.costs)
    if isinstance(options, Lookahead):
        rounds = [found for trace in traces for found in _run_rounds(seen, options, trace, budget)]
    else:
        for _ in range(2):  # the budget learns first, as that of a server has
            rounds = replay(options, traces, seen.deployment, budget, seen.streams)
    full = max((len(found.steps) for found in rounds), default=0)
    rounds = [replace(r, reads=True) if len(r.steps) < full else r for r in rounds]
    counted = [found for found in rounds if not found.reads]
    return Priced(
        price(seen.costs, rounds),
        sum(len(found.steps) for found in counted),
        sum(found.emitted for found in counted),
    )


def price(costs: Costs, rounds: Sequence[ReplayedRound]) -> float:
    """Return the milliseconds of the rounds that read no prompt."""
    total, before = 0.0, 0
    for found in rounds:
        if not found.reads:
            branched = any(step.branched for step in found.steps)
            total += costs.step_ms(found.rows, changed=found.rows != before, branched=branched)
            total += sum(step.propose_ms for step in found.steps)
            total += costs.drafting_ms(found.head_calls, found.draft_calls)
        before = found.rows
    return total


def _run_rounds(
    seen: Observed, options: Speculation, trace: Trace, budget: PricedBudget
) -> list[ReplayedRound]:
    """Return the rounds of one prompt; further streams are taken to accept as much."""
    served = replace(seen.deployment, speculation=options)
    found = serve_one(served, budget, trace.prompt, len(trace.output))
    rows = 1 + options.num_draft_tokens
    return [
        ReplayedRound(
            (ReplayedStep(rows if s.drafted else 1, 0, len(s.tokens), 0.0, bool(s.drafted)),)
            * seen.streams,
            reads=number == 0,
        )
        for number, s in enumerate(found)
    ]
