"""Gates: the config's bounds on metrics; lower bounds where larger is better, else upper ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specpipe.errors import ConfigError
from specpipe.validate.metrics import METRICS, Figure, Metric
from specpipe.validate.trials import Arm


@dataclass(frozen=True)
class GateResult:
    """One gate, and whether it was met."""

    name: str
    arm: Arm
    bound: float
    value: float | None  # None: the metric has no samples
    passed: bool

    def __str__(self) -> str:
        seen = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{self.name} of {self.arm} is {seen}, the gate is {self.bound:g}"


def check_gates_known(gates: Mapping[str, float], path: str) -> None:
    """Raise ConfigError if a gate names no metric."""
    unknown = sorted(set(gates) - set(METRICS))
    if unknown:
        raise ConfigError(
            f"{path}: 'validate.gates' has {', '.join(unknown)}: not a metric",
            hint=f"known: {', '.join(METRICS)}",
        )


def judge(
    gates: Mapping[str, float],
    metrics: Sequence[Metric],
    figures: Mapping[str, Mapping[Arm, Figure]],
    arm: Arm,
) -> list[GateResult]:
    """Hold the median of every gated metric of `arm` against its bound."""
    results = []
    for metric in metrics:
        if metric.name in gates:
            bound = gates[metric.name]
            found = figures[metric.name].get(arm)
            value = found.median if found else None
            passed = value is not None and (
                value >= bound if metric.larger_is_better else value <= bound
            )
            results.append(GateResult(metric.name, arm, bound, value, passed))
    return results
