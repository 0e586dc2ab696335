"""Decodes the most promising settings and plain decoding in turn, and times them."""

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specpipe.config.speculation import PLAIN, Speculation
from specpipe.core.contracts import Sampling
from specpipe.runtime.assembly import Runtime
from specpipe.runtime.batcher import finish
from specpipe.runtime.budget import Budget
from specpipe.speculate.decode import Limits, Step
from specpipe.tune.cost import Costs
from specpipe.tune.result import Prediction, Raced
from specpipe.tune.trace import Trace
from specpipe.validate.metrics import figure

MEASURED = 6  # held-out prompts that are decoded: plain decoding of more takes too long
BATCHES = 3  # of several streams
PASSES = 3  # over all of them; in the first one, the budgets learn
FINALISTS = 3  # settings that are decoded


@dataclass(frozen=True)
class Arms:
    """What settings are decoded with: the engines, the measured costs and the end tokens."""

    deployment: Runtime
    costs: Costs
    end_ids: tuple[int, ...]
    streams: int = 1  # that are decoded at a time

    def of(self, options: Speculation) -> tuple[Runtime, Budget]:
        """Return the run with these settings, and a budget with the measured step times."""
        budget = Budget(self.costs.step.measured(self.costs.change_ms))
        return replace(self.deployment, speculation=options), budget


def finalists(tried: Sequence[Prediction]) -> list[Prediction]:
    """Return the settings to decode: the best predictions with different numbers of draft tokens.

    The error of a prediction depends on the number of rows, so neighbours would err together.
    """
    found: dict[int, Prediction] = {}
    for prediction in tried:
        found.setdefault(prediction.options.num_draft_tokens, prediction)
    return list(found.values())[:FINALISTS]


def measure(arms: Arms, traces: Sequence[Trace], chosen: Sequence[Prediction]) -> tuple[Raced, ...]:
    """Decode the prompts of `traces` with each setting and plainly in turn; the fastest first.

    The order of the settings rotates from prompt to prompt.
    """
    settings = [PLAIN, *(prediction.options for prediction in chosen)]
    served, prompts = [arms.of(options) for options in settings], batches(traces, arms.streams)
    spent = np.full((PASSES, len(prompts), len(settings)), np.nan)
    for turn, (number, batch) in enumerate(np.ndindex(PASSES, len(prompts))):
        for place in range(len(settings)):
            arm = (turn + place) % len(settings)
            spent[number, batch, arm] = _batch_ms(arms, *served[arm], prompts[batch])
    mean = spent[1:].mean(0)
    known = mean[~np.isnan(mean).any(1)]  # an answer of one step has no time per token
    if not len(known):
        return ()
    plain, *fast = known.T.tolist()
    measured = [_measured(p, plain, ms) for p, ms in zip(chosen, fast, strict=True)]
    return tuple(sorted(measured, key=lambda found: -found.overall))


def batches(traces: Sequence[Trace], streams: int) -> list[list[Trace]]:
    """Return the prompts that are decoded together: all once, or a few batches of several."""
    if streams == 1:
        return [[trace] for trace in traces[:MEASURED]]
    numbers = range(BATCHES * streams)
    rest = [traces[number % len(traces)] for number in numbers]
    return [rest[begin : begin + streams] for begin in range(0, len(rest), streams)]


def _batch_ms(arms: Arms, deployment: Runtime, budget: Budget, batch: Sequence[Trace]) -> float:
    """Return the milliseconds per token while all streams decode; NaN if they never do."""
    batcher, tokens, began = deployment.batcher(budget), 0, 0
    for trace in batch:
        limits, sampling = Limits(len(trace.output)), Sampling(end_ids=arms.end_ids)
        deployment.add(batcher, deployment.decoding(trace.prompt, sampling, limits))
    while len(batcher.streams) == len(batch):
        events = batcher.round()
        if began:
            tokens += sum(len(step.tokens) for _, step in events if isinstance(step, Step))
        elif all(stream.decodes for stream in batcher.streams):
            began = time.perf_counter_ns()
    ended = time.perf_counter_ns()
    for stream in list(batcher.streams):
        batcher.remove(stream)
    return (ended - began) / 1e6 / tokens if began and tokens else math.nan


def _measured(prediction: Prediction, plain: Sequence[float], fast: Sequence[float]) -> Raced:
    ratios = [slow / ms for slow, ms in zip(plain, fast, strict=True)]
    return Raced(
        prediction.options,
        prediction.speedup,
        figure(list(fast)),
        figure(list(plain)),
        figure(ratios),
        statistics.mean(plain) / statistics.mean(fast),
    )


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


def ms_a_token(steps: Iterator[Step]) -> list[float]:
    """Return the time per token after the first step, which reads the prompt; [] if it was all."""
    next(steps)
    began = time.perf_counter_ns()
    tokens = sum(len(step.tokens) for step in steps)
    return [(time.perf_counter_ns() - began) / 1e6 / tokens] if tokens else []
