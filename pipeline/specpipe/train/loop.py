"""The training loop: steps, learning rate, checkpoints and the curve.

What a step does depends only on the weights and the step's number, so a run that was killed and
resumed ends in the same bytes as one that was not.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from specpipe.config.training import Schedule
from specpipe.core.contracts import Ints
from specpipe.core.errors import ConfigError
from specpipe.train.disk import unwritten
from specpipe.train.placement import HERE, TrainingPlace

Progress = Callable[[int, int], None]
CLIP = 1.0  # the largest norm of a step's gradient
MOST_TIMED = 4  # steps that are timed


@dataclass(frozen=True)
class Group:
    """Weights that share a learning rate: `ratio` times that of the schedule."""

    parameters: tuple[torch.nn.Parameter, ...]
    ratio: float = 1.0


@dataclass(frozen=True)
class Point:
    """One point of the curve."""

    step: int
    loss: float  # mean over the steps since the last point; at step 0 there is none: 0
    held_out: Mapping[str, float]


Part = Callable[[], torch.Tensor]


class TrainingTask(Protocol):
    """Something that can be trained."""

    def groups(self) -> list[Group]:
        """Return the weights that change."""
        ...

    def loss(self, step: int) -> torch.Tensor:
        """Return the loss of a step's batch; depends only on the weights and `step`."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Judge the weights on the hold-out."""
        ...


@runtime_checkable
class PartedTask(Protocol):
    """A task whose loss is a sum of parts, which are computed one after the other.

    Gradients are accumulated over the parts; several processes share them.
    """

    def parts(self, step: int) -> Sequence[Part]:
        """Return what computes each part; the sum of their results is `loss(step)`."""
        ...


def sum_of(parts: Sequence[Part]) -> torch.Tensor:
    """Return the loss of a step from its parts."""
    first, *others = (part() for part in parts)
    for other in others:
        first = first + other
    return first


@dataclass(frozen=True)
class TrainingPlan:
    """A schedule for a given amount of text."""

    schedule: Schedule
    steps: int

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step: rising to its peak, then down a half cosine to zero."""
        rising = max(1, round(self.schedule.warm_up * self.steps))
        if step < rising:
            return self.schedule.learning_rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def batch_of(step: int, size: int, total: int, seed: int) -> Ints:
    """Return which of `total` items a step learns from: epoch after epoch, each in a new order."""
    per_epoch = steps_per_epoch(size, total)
    epoch, place = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(total)
    return order[place * size : (place + 1) * size]


def steps_per_epoch(size: int, total: int) -> int:
    """Return how many batches of `size` it takes to see `total` items once."""
    return max(1, math.ceil(total / size))


@dataclass
class _State:
    step: int
    total: float  # of the losses since the last point
    curve: tuple[Point, ...]


def train(
    task: TrainingTask,
    plan: TrainingPlan,
    checkpoint: Path,
    key: str,
    *,
    progress: Progress,
    placement: TrainingPlace = HERE,
) -> tuple[Point, ...]:
    """Train to the end of `plan` and return the curve; resume from `checkpoint` if it is of `key`.

    The checkpoint file is replaced whole every `checkpoint_every` steps, by the first process of
    `placement`. Raises ConfigError if it cannot be read or if the loss is no longer a number,
    StageFailed if the disk is full.
    """
    groups = task.groups()
    optimiser = _optimiser(groups)
    placement.wait()
    state = _resume(checkpoint, key, groups, optimiser)
    if state is None:
        state = _State(0, 0.0, (Point(0, 0.0, task.evaluate()),))
    every = plan.schedule.checkpoint_every
    for step in range(state.step, plan.steps):
        state.total += _step(task, groups, optimiser, step, plan.learning_rate(step), placement)
        state.step = step + 1
        progress(state.step, plan.steps)
        if state.step % every == 0 or state.step == plan.steps:
            _mark(state, task.evaluate())
            if placement.is_first:
                _write(checkpoint, key, groups, optimiser, state)
    return state.curve


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step, and of a point of the curve."""

    step: float
    evaluation: float


def time_steps(
    task: TrainingTask, plan: TrainingPlan, *, placement: TrainingPlace = HERE, seconds: float
) -> StepTimes:
    """Take a few steps for about `seconds`, at least one, and return the median time of a step.

    The first step, which is slower, counts only if it is the only one.
    """
    groups, times = task.groups(), list[float]()
    optimiser = _optimiser(groups)
    began = time.perf_counter()
    task.evaluate()
    evaluated = time.perf_counter() - began
    for step in range(min(plan.steps, MOST_TIMED)):
        before = time.perf_counter()
        _step(task, groups, optimiser, step, plan.learning_rate(step), placement)
        times.append(time.perf_counter() - before)
        if sum(times) + times[-1] > seconds:
            break
    return StepTimes(statistics.median(times[1:] or times), evaluated)


def _optimiser(groups: Sequence[Group]) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": list(g.parameters), "ratio": g.ratio} for g in groups], weight_decay=0.0
    )


def _step(
    task: TrainingTask,
    groups: list[Group],
    optimiser: torch.optim.Optimizer,
    step: int,
    rate: float,
    placement: TrainingPlace,
) -> float:
    """Take one step and return the loss of its batch."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["ratio"]
    optimiser.zero_grad(set_to_none=True)
    parameters = [p for g in groups for p in g.parameters]
    loss = differentiate(task, step, parameters, placement)
    if not math.isfinite(loss):
        raise ConfigError(f"the loss is {loss} at step {step}", hint="lower schedule.learning_rate")
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimiser.step()
    return loss


def differentiate(
    task: TrainingTask,
    step: int,
    parameters: Sequence[torch.nn.Parameter],
    placement: TrainingPlace,
) -> float:
    """Add the gradients of a step's batch to the parameters; return its loss.

    Each process of `placement` computes some of the parts, and all get the sums.
    """
    parts = task.parts(step) if isinstance(task, PartedTask) else [lambda: task.loss(step)]
    total = 0.0
    for part in placement.own(parts):
        with placement.mixed():
            loss = part()
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if placement.world == 1:
        return total
    for parameter in parameters:  # a process without parts, or a weight that they do not use
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    placement.add_up([p.grad for p in parameters if p.grad is not None])
    losses = torch.tensor([total], device=placement.device)
    placement.add_up([losses])
    return float(losses)


def _mark(state: _State, held_out: Mapping[str, float]) -> None:
    steps = state.step - state.curve[-1].step
    state.curve = (*state.curve, Point(state.step, state.total / steps, held_out))
    state.total = 0.0


def _write(
    file: Path, key: str, groups: list[Group], optimiser: torch.optim.Optimizer, state: _State
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    whole = {
        "key": key,
        "step": state.step,
        "weights": [p.detach() for g in groups for p in g.parameters],
        "optimiser": optimiser.state_dict(),
        "curve": [(p.step, p.loss, dict(p.held_out)) for p in state.curve],
    }
    try:
        torch.save(whole, temporary)
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
        earlier = state.curve[-2].step if file.is_file() else 0
        raise unwritten(error, file, temporary=temporary, checkpoint=earlier) from error
    temporary.replace(file)


@torch.no_grad()
def _resume(
    file: Path, key: str, groups: list[Group], optimiser: torch.optim.Optimizer
) -> _State | None:
    """Put weights and optimiser where the checkpoint left them; None if it is of another run."""
    if not file.is_file():
        return None
    try:
        whole: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        first = str(error).splitlines()[0]
        raise ConfigError(f"{file}: damaged ({first})", hint="delete it and start again") from error
    if whole["key"] != key:
        return None
    parameters = [p for g in groups for p in g.parameters]
    for parameter, weight in zip(parameters, whole["weights"], strict=True):
        parameter.copy_(weight)
    optimiser.load_state_dict(whole["optimiser"])
    return _State(whole["step"], 0.0, tuple(Point(*point) for point in whole["curve"]))
