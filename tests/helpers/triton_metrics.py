"""A mock of the metrics of Triton's Python backend."""

import sys
from types import ModuleType

import pytest


class Metric:
    """The total that was exported, and by how many calls."""

    def __init__(self) -> None:
        self.total, self.calls = 0.0, 0

    def increment(self, amount: float) -> None:
        assert amount > 0
        self.total, self.calls = self.total + amount, self.calls + 1

    def set(self, value: float) -> None:
        self.total, self.calls = value, self.calls + 1

    def value(self) -> float:
        return self.total


class MetricFamily:
    """Remembers its metrics by their names without `specpipe_`, and with their depth if any."""

    COUNTER, GAUGE = "counter", "gauge"
    made: dict[str, Metric] = {}  # noqa: RUF012  # emptied by `install`

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802  # Triton's name
        name = self.name.removeprefix("specpipe_") + labels.get("depth", "")
        return self.made.setdefault(name, Metric())


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules of metrics that are imported from now on use the mock."""
    backend = ModuleType("triton_python_backend_utils")
    backend.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    monkeypatch.setattr(MetricFamily, "made", {})
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    for name in ("metrics", "batch_metrics"):
        monkeypatch.delitem(sys.modules, f"specpipe.runtime.triton.{name}", raising=False)


def totals() -> dict[str, float]:
    """Return what was exported, by name."""
    return {name: metric.total for name, metric in MetricFamily.made.items()}
