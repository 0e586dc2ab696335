"""Gates: bounds on metrics. A bound is a minimum if larger is better, otherwise a maximum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specpipe.config.metrics import DEFAULT_GATES
from specpipe.validate.metrics import Figure, Metric, load_metrics
from specpipe.validate.trials import Arm


@dataclass(frozen=True)
class GateResult:
    """One gate, and whether it passed."""

    name: str
    arm: Arm
    bound: float
    value: float | None  # None: the metric has no samples
    passed: bool

    def __str__(self) -> str:
        seen = "not measured"
        if self.value is not None:
            seen = _number(self.value)
            if not self.passed and seen == _number(self.bound):  # do not round a failure away
                seen = str(self.value)
        return f"{self.name} = {seen} (required: {self.relation} {_number(self.bound)})"

    @property
    def relation(self) -> str:
        """The comparison that the value must satisfy."""
        larger = {metric.name: metric.larger_is_better for metric in load_metrics()}
        return ">=" if larger.get(self.name, True) else "<="


def _number(value: float) -> str:
    """Return a number with four significant digits, and at least two decimals if it is small."""
    short = f"{value:.4g}" if abs(value) < 9999.5 else f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 100 and float(f"{value:.2f}") == float(short) else short


def judge(
    gates: Mapping[str, float],
    metrics: Sequence[Metric],
    figures: Mapping[str, Mapping[Arm, Figure]],
    arm: Arm,
) -> list[GateResult]:
    """Compare the median of every gated metric of `arm` with its bound.

    The default gates apply where their metrics were measured.
    """
    defaults = {name: b for name, b in DEFAULT_GATES.items() if arm in figures.get(name, {})}
    bounds = {**defaults, **gates}
    results = []
    for metric in metrics:
        if metric.name in bounds:
            bound = bounds[metric.name]
            found = figures[metric.name].get(arm)
            value = found.median if found else None
            passed = value is not None and (
                value >= bound if metric.larger_is_better else value <= bound
            )
            results.append(GateResult(metric.name, arm, bound, value, passed))
    return results
