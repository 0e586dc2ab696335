"""Metrics: one file each, with name, unit and direction; `config.metrics` is their table.

Not here: requests. A metric is a function of the trials that were measured.
"""

import importlib
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from specpipe.config.metrics import METRICS
from specpipe.core.statistics import bootstrap
from specpipe.validate.trials import Arm, Trials


@dataclass(frozen=True)
class Figure:
    """A median and the middle four fifths of the samples behind it."""

    median: float
    p10: float
    p90: float
    samples: int
    interval: tuple[float, float] | None = None  # of the median, 95 %; None: not computed


@dataclass(frozen=True)
class Metric:
    """What a number means and how it is taken from the trials."""

    name: str
    unit: str
    larger_is_better: bool
    meaning: str  # one sentence for the report
    compute: Callable[[Trials], Mapping[Arm, Figure]]  # an arm without samples is left out


def load_metrics() -> list[Metric]:
    """Return every metric of the table, in its order."""
    found = []
    for path in METRICS.values():
        module, attribute = path.split(":")
        found.append(getattr(importlib.import_module(module), attribute))
    return found


def figure(samples: list[float]) -> Figure:
    """Summarise samples, at least one."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Figure(
        statistics.median(ordered),
        ordered[round(last * 0.1)],
        ordered[round(last * 0.9)],
        len(ordered),
    )


def share_of(share: float, count: int) -> Figure:
    """Return a share of `count` samples, which has no spread."""
    return Figure(share, share, share, count)


def by_arm(samples: Mapping[Arm, list[float]]) -> dict[Arm, Figure]:
    """Summarise the samples of every arm that has any."""
    return {arm: figure(values) for arm, values in samples.items() if values}


def total_seconds(trials: Trials, arm: Arm) -> dict[int, float]:
    """Return the median time to the last token for every prompt of an arm."""
    times: dict[int, list[float]] = {}
    for trial in trials.of(arm):
        times.setdefault(trial.prompt, []).append(trial.total_s)
    return {prompt: statistics.median(values) for prompt, values in times.items()}


def speedups(trials: Trials, over: Arm) -> dict[Arm, Figure]:
    """Return, prompt by prompt, how much faster each arm of the server is than `over` per token.

    The interval is a percentile bootstrap over the prompts.
    """
    arms: tuple[Arm, ...] = ("plain", "speculative")
    ratios = {a: list(speedups_by_prompt(trials, over, a).values()) for a in arms if a != over}
    found = by_arm(ratios)
    return {arm: replace(f, interval=bootstrap(ratios[arm])) for arm, f in found.items()}


def speedups_by_prompt(trials: Trials, over: Arm, arm: Arm) -> dict[int, float]:
    """Return how much faster an arm is than `over` per token, by prompt; medians of the repeats."""
    base, ours = _seconds_per_token(trials, over), _seconds_per_token(trials, arm)
    return {prompt: base[prompt] / ours[prompt] for prompt in sorted(ours) if prompt in base}


def _seconds_per_token(trials: Trials, arm: Arm) -> dict[int, float]:
    counts = {trial.prompt: trial.output_tokens for trial in trials.of(arm)}
    return {p: s / counts[p] for p, s in total_seconds(trials, arm).items() if counts[p]}
