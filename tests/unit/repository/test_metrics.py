"""The values that a Meter passes to Triton, and when; the backend's module is a mock."""

import sys
from types import ModuleType
from typing import Any

import pytest

from specpipe.speculate.decode import Step


class Metric:
    def __init__(self) -> None:
        self.total, self.calls = 0.0, 0

    def increment(self, amount: float) -> None:
        self.total, self.calls = self.total + amount, self.calls + 1

    def set(self, value: float) -> None:
        self.total, self.calls = value, self.calls + 1

    def value(self) -> float:
        return self.total


class MetricFamily:
    COUNTER, GAUGE = "counter", "gauge"
    made: dict[str, Metric] = {}  # noqa: RUF012  # emptied by the fixture

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802  # Triton's name
        return self.made.setdefault(self.name.removeprefix("specpipe_"), Metric())


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Any:
    backend = ModuleType("triton_python_backend_utils")
    monkeypatch.setattr(MetricFamily, "made", {})
    backend.MetricFamily = MetricFamily  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "specpipe.repository.models.metrics", raising=False)
    from specpipe.repository.models import metrics

    monkeypatch.setattr(metrics.time, "monotonic", lambda: Clock.now)
    yield metrics.Meter("tensorrt_llm", "medusa")
    monkeypatch.delitem(sys.modules, "specpipe.repository.models.metrics", raising=False)


class Clock:
    now = 0.0


def totals() -> dict[str, float]:
    return {name: metric.total for name, metric in MetricFamily.made.items()}


def test_steps_are_handed_on_together_and_gauges_are_those_of_all(meter: Any) -> None:
    for _ in range(10):
        meter.add(Step((1, 2), drafted=3, accepted=1))
    assert not any(metric.calls for metric in MetricFamily.made.values())
    meter.add(Step((1,), drafted=3, accepted=0, finish="length"))
    assert totals() == {
        "steps_total": 11, "output_tokens_total": 21, "draft_tokens_total": 33,
        "accepted_draft_tokens_total": 10, "acceptance_rate": 10 / 33, "acceptance_length": 21 / 11,
    }  # fmt: skip
    assert all(metric.calls == 1 for metric in MetricFamily.made.values())


def test_a_long_answer_is_counted_while_it_runs(meter: Any, monkeypatch) -> None:
    meter.add(Step((1,), drafted=0, accepted=0))
    monkeypatch.setattr(Clock, "now", 0.2)
    meter.add(Step((1,), drafted=0, accepted=0))
    assert totals()["steps_total"] == 2


def test_what_a_request_left_uncounted_is_handed_on_at_rest(meter: Any) -> None:
    meter.add(Step((1, 2), drafted=3, accepted=1))
    meter.export()
    meter.export()
    assert totals()["output_tokens_total"] == 2
    assert MetricFamily.made["acceptance_rate"].calls == 1
