"""The values that a Meter passes to Triton, and when; the backend's module is a mock."""

from typing import Any

import pytest

from specpipe.runtime.exchange import Counters
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


def test_gauges_follow_a_process_that_counts_while_they_are_set(
    meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, gauge = (MetricFamily.made[name] for name in ("steps_total", "acceptance_length"))
    set_gauge = gauge.set

    def set_late(value: float) -> None:
        if gauge.calls == 0:
            steps.increment(4)  # by another process, which sets the gauges at once
        set_gauge(value)

    monkeypatch.setattr(gauge, "set", set_late)
    meter.add_request(Counters(arrival_ns=0, steps=2, output_tokens=6, draft_tokens=4))
    assert gauge.total == 6 / (2 + 4)
