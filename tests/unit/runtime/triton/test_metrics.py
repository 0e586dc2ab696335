"""The values that a Meter passes to Triton, and when; the backend's module is a mock."""

from typing import Any

import pytest

from specpipe.speculate.decode import Step
from tests.helpers import triton_metrics
from tests.helpers.triton_metrics import MetricFamily, totals


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Any:
    triton_metrics.install(monkeypatch)
    from specpipe.runtime.triton import metrics

    monkeypatch.setattr(metrics.time, "monotonic", lambda: Clock.now)
    return metrics.Meter("tensorrt_llm", "medusa")


class Clock:
    now = 0.0


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
    monkeypatch.setattr(Clock, "now", 0.6)
    meter.add(Step((1,), drafted=0, accepted=0))
    assert totals()["steps_total"] == 2


def test_what_a_request_left_uncounted_is_handed_on_at_rest(meter: Any) -> None:
    meter.add(Step((1, 2), drafted=3, accepted=1))
    meter.export()
    meter.export()
    assert totals()["output_tokens_total"] == 2
    assert MetricFamily.made["acceptance_rate"].calls == 1
