"""Metrics that scenarios measure: differences, distances, goodput, tasks."""

from collections.abc import Callable, Mapping

from specpipe.validate.metrics import Figure, Metric
from specpipe.validate.trials import Arm, Trials


def _measured(name: str) -> Callable[[Trials], Mapping[Arm, Figure]]:
    return lambda trials: dict(trials.scenario_figures.get(name, {}))


def _metric(name: str, unit: str, larger_is_better: bool, meaning: str) -> Metric:
    return Metric(name, unit, larger_is_better, meaning, _measured(name))


DEFECTS = _metric(
    "defects", "answers", False,
    "Answers of all scenarios that differ from plain decoding or the reference by more than noise.",
)  # fmt: skip
KL_MEAN = _metric("kl_mean", "nats", False, "Mean KL divergence of the engine from transformers.")
KL_P99 = _metric("kl_p99", "nats", False, "99th percentile of that divergence.")
TOP1 = _metric(
    "top1_agreement", "share", True, "Share of positions with the likeliest token of transformers."
)
TOP10 = _metric(
    "top10_agreement", "share", True,
    "Share of the ten likeliest tokens of transformers that are among the engine's ten.",
)  # fmt: skip
GOODPUT = _metric(
    "goodput", "requests/s", True,
    "Requests per second within `validate.slo`, at the load that has the most.",
)  # fmt: skip
LONG_EQUAL = _metric(
    "long_equal", "share", True, "Share of long answers that are equal to those of transformers."
)
TASK_ACCURACY = _metric("task_accuracy", "share", True, "Share of right documents of all tasks.")
TASK_FLIPS = _metric(
    "task_flips", "share", False,
    "Share of documents that are right for the server or transformers, and wrong for the other.",
)  # fmt: skip
