"""Measures the pace of a training: a few steps on random text, for less than a minute.

How long a step takes does not depend on the words of a text. The documents have the usual length of
the training's own, so that batches are as large as there.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from specpipe.config.training import Schedule
from specpipe.core.contracts import Sampling
from specpipe.train.answers import generate
from specpipe.train.features import pad
from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.kinds import Work
from specpipe.train.forecast.times import Pace
from specpipe.train.job import Make, TrainingJob
from specpipe.train.loop import MOST_TIMED, Point, StepTimes, TrainingPlan, TrainingTask, time_steps
from specpipe.train.target import Target
from specpipe.train.text import CURVE_DOCUMENTS, CURVE_POSITIONS, Document, Split

STEPS_S, STATES_S, ANSWERS_S = 8.0, 8.0, 4.0  # that each part may take, about
JUDGED = 0.125  # of what a point of the curve looks at
_UNUSED = 1  # of the learned tokens of a document at which heads learn nothing
_FEW, _PROMPT = 4, 8  # tokens of an answer that is timed, and of its prompt
_GREEDY = Sampling(top_k=1, temperature=0.0)


def rehearse(job: TrainingJob, make: Make, work: Work, amounts: Amounts) -> Pace:
    """Return the measured pace of the training that `make` does; leaves nothing on the disk."""
    began = time.perf_counter()
    token = _token_s(job.target, _usual_length(job, amounts))
    answer = _answer_s(job, amounts, token)
    sample = _sample(job, work, amounts, token)
    found = _steps(replace(job, text=sample.text), make)
    measured = time.perf_counter() - began
    return Pace(
        token, answer, found.step * sample.batch, found.evaluation * sample.held_out, measured
    )


class _Timed(Exception):
    """Ends a rehearsal with what it measured."""

    def __init__(self, times: StepTimes) -> None:
        super().__init__()
        self.times = times


@dataclass(frozen=True)
class _Rehearsal(TrainingJob):
    """A job whose training takes a few steps and ends."""

    def train(self, task: TrainingTask, schedule: Schedule, batches: int) -> tuple[Point, ...]:
        plan = TrainingPlan(schedule, max(1, round(schedule.epochs * batches)))
        raise _Timed(time_steps(task, plan, placement=self.placement, seconds=STEPS_S))


def _steps(job: TrainingJob, make: Make) -> StepTimes:
    with _folders() as (work, out):
        rehearsal = _Rehearsal(
            job.config, job.target, job.text, work, {}, lambda text: None,
            lambda done, total: None, job.placement,
        )  # fmt: skip
        try:
            make(rehearsal, out)
        except _Timed as end:
            return end.times
    raise AssertionError("a kind of training that takes no step")


@contextlib.contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="specpipe-rehearsal-") as folder:
        work, out = Path(folder, "work"), Path(folder, "out")
        work.mkdir()
        out.mkdir()
        yield work, out


def _usual_length(job: TrainingJob, amounts: Amounts) -> int:
    length = round(amounts.tokens / max(1, amounts.documents))
    return min(max(length, _PROMPT), job.config.train.sequence_length)


def _token_s(target: Target, length: int) -> float:
    """Return the seconds that a token takes in a forward pass over two documents."""
    ids, mask = pad([_random(target, length, length)] * 2)
    target.hidden(ids[:, :_PROMPT], mask[:, :_PROMPT])  # warms up
    began = time.perf_counter()
    target.hidden(ids, mask).cpu()
    return (time.perf_counter() - began) / ids.numel()


def _answer_s(job: TrainingJob, amounts: Amounts, token: float) -> float:
    """Return the seconds of one more token of a whole batch of answers."""
    how = job.config.train.self_distillation
    if how is None or not amounts.prompts or how.endpoint is not None:
        return 0.0
    rows = min(how.batch_size, amounts.prompts)
    timed = max(1, min(rows, int(ANSWERS_S / (token * (_PROMPT + 2 * _FEW)))))
    prompts = [_random(job.target, _PROMPT, 0).tokens.tolist()] * timed
    seconds, lengths = list[float](), list[int]()
    for tokens in (1, 1, _FEW):  # the first warms up
        began = time.perf_counter()
        answers = generate(job.target, prompts, tokens, _GREEDY, 0)
        seconds.append(time.perf_counter() - began)
        lengths.append(max(map(len, answers)))
    further = max(1, lengths[2] - lengths[1])
    return max(0.0, seconds[2] - seconds[1]) / further * rows / timed


@dataclass(frozen=True)
class _Sample:
    """Random text for the batches that are timed and one point of the curve.

    If computing its hidden states takes too long, it is a part of one batch. There is never a small
    batch after full ones, whose time would count as that of a step.
    """

    text: Split
    batch: float  # how often a batch of the training is as large as these
    held_out: float  # how often a point of its curve looks at as much


def _sample(job: TrainingJob, work: Work, amounts: Amounts, token: float) -> _Sample:
    length = _usual_length(job, amounts)
    batch_tokens = work.schedule.batch_tokens
    learned = max(3, round(length * amounts.positions / max(1, amounts.tokens)))
    if work.on_positions:
        learned = min(learned, batch_tokens + _UNUSED)
        usable = learned - _UNUSED
        per_step, per_point = batch_tokens / usable, CURVE_POSITIONS / usable
    else:
        per_step, per_point = max(1.0, batch_tokens / length), float(CURVE_DOCUMENTS)
    there = max(1.0, amounts.documents * job.config.train.hold_out)
    point = min(per_point, there)
    judged = max(1.0, point * JUDGED)
    most = STATES_S / (token * length)
    trained = MOST_TIMED * math.ceil(per_step)
    if trained + judged > most:
        share = min(1.0, most / (per_step + judged))
        trained, judged = max(1, int(per_step * share)), judged * share
    held_out = max(1, round(judged))
    made = [_random(job.target, length, learned, seed) for seed in range(trained + held_out)]
    return _Sample(
        Split(tuple(made[:trained]), tuple(made[trained:])),
        max(1.0, per_step / trained),
        max(1.0, point / held_out),
    )


def _random(target: Target, length: int, learned: int, seed: int = 0) -> Document:
    tokens = np.random.default_rng(seed).integers(0, len(target.embedding), length)
    return Document(tokens, np.arange(length) >= length - learned)
