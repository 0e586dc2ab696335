"""The time that a training takes: by a measured pace of its parts, or by a GPU's data sheet."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from specpipe.config.training import TrainOptions
from specpipe.core.model import ModelConfig
from specpipe.engine.gpus import Gpu
from specpipe.plan.roofline import BANDWIDTH_SHARE, FLOPS_SHARE, multiplied
from specpipe.train.forecast.amounts import Amounts
from specpipe.train.forecast.kinds import BYTES, FLOAT, Work
from specpipe.train.forecast.needs import step_positions
from specpipe.train.invented import MAX_TOKENS
from specpipe.train.text import CURVE_DOCUMENTS, CURVE_POSITIONS

# Launching a layer of transformers, kernel by kernel, and an optimiser's step. Assumed.
EAGER_LAYER_S, EAGER_STEP_S = 0.8e-3, 20e-3


@dataclass(frozen=True)
class Pace:
    """Seconds of the parts of a training."""

    token: float  # of the target's forward pass
    answer_step: float  # one token of every answer of a batch
    step: float
    evaluation: float  # of one point of the curve
    measured: float | None  # how long it was measured; None: by the GPU's data sheet


@dataclass(frozen=True)
class Durations:
    """Seconds of a training, by part, and what they were computed from."""

    parts: Mapping[str, float]
    steps: int
    pace: Pace

    @property
    def total(self) -> float:
        """All parts together."""
        return sum(self.parts.values())


def durations(train: TrainOptions, work: Work, amounts: Amounts, pace: Pace) -> Durations:
    """Return how long a training takes that begins without cached answers or states."""
    steps = steps_of(train, work, amounts)
    points = 1 + math.ceil(steps / work.schedule.checkpoint_every)
    judged = _judged(train, work, amounts)
    states = amounts.tokens if work.stored else 0
    if work.runs_target:  # on the fly: a part of every step
        states = round(states * train.hold_out)
    return Durations(
        {
            "answers": _answers_s(train, amounts, pace),
            "hidden states": states * pace.token,
            "training": steps * pace.step,
            "evaluation": (points + 2 * judged) * pace.evaluation,
        },
        steps,
        pace,
    )


def steps_of(train: TrainOptions, work: Work, amounts: Amounts) -> int:
    """Return the number of steps: batches of positions, or of whole documents."""
    learned = amounts.tokens if work.whole_documents else amounts.positions
    batches = math.ceil(learned * (1 - train.hold_out) / work.schedule.batch_tokens)
    return max(1, round(work.schedule.epochs * max(1, batches)))


def _judged(train: TrainOptions, work: Work, amounts: Amounts) -> float:
    """Return how often the whole hold-out is as long as what a point of the curve looks at."""
    part = CURVE_POSITIONS if work.on_positions else CURVE_DOCUMENTS
    whole = amounts.positions if work.on_positions else amounts.documents
    return max(1.0, whole * train.hold_out / part)


def _answers_s(train: TrainOptions, amounts: Amounts, pace: Pace) -> float:
    how = train.self_distillation
    if how is None or not amounts.prompts or how.endpoint is not None:
        return 0.0
    batches = math.ceil(amounts.prompts / how.batch_size)
    prefill = amounts.prompts * amounts.prompt_length * pace.token
    inventions = math.ceil(amounts.invented / how.batch_size) * MAX_TOKENS
    return prefill + (batches * how.max_tokens + inventions) * pace.answer_step


def sheet_pace(
    train: TrainOptions, work: Work, model: ModelConfig, amounts: Amounts, gpu: Gpu
) -> Pace:
    """Return the pace on a GPU by its data sheet; nothing is measured."""
    flops = gpu.fp16_tflops * 1e12 * FLOPS_SHARE
    bandwidth = gpu.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE
    token, layers = 2 * multiplied(model) / flops, model.num_hidden_layers
    how, weights = train.self_distillation, model.num_parameters * BYTES[train.dtype]
    answer = max(weights / bandwidth, (how.batch_size if how else 1) * token)
    rows = work.schedule.batch_tokens
    logits = 2 * work.outputs * work.candidates * model.hidden_size
    learned = 6 * work.multiplied + 2 * logits + work.soft * logits
    target = token if work.runs_target else 0.0
    parts = math.ceil(rows / step_positions(train, work, amounts))
    moments = 7 * FLOAT * work.trained / bandwidth
    launches = EAGER_STEP_S + parts * EAGER_LAYER_S * 3 * work.layers
    judged = 2 * (work.multiplied + work.outputs * model.vocab_size * model.hidden_size)
    return Pace(
        token,
        max(answer, layers * EAGER_LAYER_S),
        rows * (learned / flops + target) + moments + launches,
        CURVE_POSITIONS * judged / flops,
        None,
    )
