"""The choice of `specpipe tune` compared with that of brute force, in speed and in time taken."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specpipe.bench.served import Notify, Progress
from specpipe.config.run_config import RunConfig
from specpipe.config.speculation import PLAIN, Speculation
from specpipe.engine.upstream_models import TOKENIZER
from specpipe.run.run import Run
from specpipe.run.stages import build
from specpipe.runtime.assembly import Runtime, open_runtime
from specpipe.runtime.budget import Budget
from specpipe.tune.candidates import candidates
from specpipe.tune.race import ms_a_token, serve_one
from specpipe.tune.result import Tuning
from specpipe.tune.stage import on_this_machine
from specpipe.tune.tune import observe, tune
from specpipe.validate.metrics import Figure, figure
from specpipe.validate.questions import load_prompts

Arm = tuple[Runtime, Budget]


@dataclass(frozen=True)
class TuningRow:
    """Two choices for one run."""

    run: str
    chosen: Speculation  # by tune
    tune_s: float
    fastest: Speculation  # by brute force: the fastest of all settings, each measured once
    brute_force_s: float
    settings: int
    relative_speed: Figure  # of tune's choice, in turn with the other; samples are rounds


@dataclass(frozen=True)
class TuningSubject:
    """A run that is loaded in this process, and its prompts."""

    config: RunConfig
    runtime: Runtime
    prompts: Sequence[Sequence[int]]
    end_ids: tuple[int, ...]

    @property
    def held(self) -> Sequence[Sequence[int]]:
        """The prompts on which tune does not choose."""
        return self.prompts[1::2] or self.prompts

    def mean_ms(self, arm: Arm, prompts: Sequence[Sequence[int]]) -> float:
        """Return the mean time per token after the first step, which runs the prompt."""
        most = self.config.validate.max_tokens
        runs = [serve_one(*arm, prompt, most, self.end_ids) for prompt in prompts]
        return statistics.mean([ms for steps in runs for ms in ms_a_token(steps)] or [0.0])


def bench_tuning(
    run: Run,
    rounds: int,
    *,
    notify: Notify = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> TuningRow:
    """Build a run for this machine, and choose its settings by `tune` and by brute force.

    Brute force decodes the held-out prompts with every setting that tune considers, in this
    process. Then both choices decode the same prompts in turn, `rounds` times, because the fastest
    of many noisy measurements is partly chance. Raises what `build` and `load_prompts` raise.
    """
    config = on_this_machine(run.config)
    subject = load_subject(run if config is run.config else run.variant(config), notify)
    notify(f"{config.name}: tuning")
    began = time.perf_counter()
    tuning = tune(observe(subject.config, subject.runtime, subject.prompts, subject.end_ids))
    tuned = time.perf_counter()
    settings = [PLAIN, *candidates(subject.config.speculation, tuning.accuracy)]
    notify(f"{config.name}: measuring {len(settings)} settings")
    best = measure_all(subject, tuning, settings, progress)
    searched = time.perf_counter()
    pair = (arm(subject, tuning, best), arm(subject, tuning, tuning.best))
    ratios = [race(subject, pair) for _ in range(rounds)]
    return TuningRow(
        run.config.name,
        tuning.best,
        tuned - began,
        best,
        searched - tuned,
        len(settings),
        figure(ratios),
    )


def load_subject(run: Run, notify: Notify) -> TuningSubject:
    """Build a run, load its engines in this process and read its prompts."""
    build(run, notify=notify)
    config, place = run.plan.config, run.workspace
    runtime = open_runtime(config, {role: place.engine(role) for role in run.plan.requests})
    runtime.warm_up()
    return TuningSubject(config, runtime, *load_prompts(config, place.repository / TOKENIZER))


def arm(subject: TuningSubject, tuning: Tuning, options: Speculation) -> Arm:
    """Return the run with other settings, and a budget with tune's measured step times."""
    return replace(subject.runtime, speculation=options), Budget(tuning.cost.measured())


def measure_all(
    subject: TuningSubject, tuning: Tuning, settings: Sequence[Speculation], progress: Progress
) -> Speculation:
    """Decode the held-out prompts with every setting; return the fastest."""
    times = []
    for number, options in enumerate(settings):
        times.append(subject.mean_ms(arm(subject, tuning, options), subject.held))
        progress(number + 1, len(settings))
    return settings[times.index(min(times))]


def race(subject: TuningSubject, pair: tuple[Arm, Arm]) -> float:
    """Return how much faster the second is than the first, prompt by prompt in turn.

    1 if no answer has a second token, so that nothing can be compared.
    """
    totals = [0.0, 0.0]
    for prompt in subject.held:
        for number, one in enumerate(pair):
            totals[number] += subject.mean_ms(one, [prompt])
    return totals[0] / totals[1] if totals[1] else 1.0
