"""Prometheus: figures of speculation, summed over all requests of one model.

Triton exports these in addition to its own metrics; no backend of TensorRT-LLM does.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from specpipe.runtime.exchange import Counters
from specpipe.speculate.decode import Step

_COUNTERS = {
    "steps": "Calls of the target model",
    "output_tokens": "Tokens generated",
    "draft_tokens": "Tokens drafted",
    "accepted_draft_tokens": "Drafted tokens that were accepted",
}
_GAUGES = {
    "acceptance_rate": "Accepted draft tokens by draft tokens, since the start",
    "acceptance_length": "Tokens a step, the target's own included, since the start",
}
_EXPORT_SECONDS = 0.5


class Meter:
    """Counts steps; not thread-safe, like the engine.

    Several processes of one model may count: Triton adds their counters up, and the gauges are
    set from the sums.
    """

    def __init__(self, model: str, method: str, also: Callable[[], None] = lambda: None) -> None:
        """Count for `model`; `also` is called with every export."""
        self._also = also
        labels = {"model": model, "method": method}
        kinds = pb_utils.MetricFamily
        self._families = {
            **{n: new_family(n + "_total", d, kinds.COUNTER) for n, d in _COUNTERS.items()},
            **{n: new_family(n, d, kinds.GAUGE) for n, d in _GAUGES.items()},
        }
        self._metrics = {n: f.Metric(labels=labels) for n, f in self._families.items()}
        self._totals = dict.fromkeys(_COUNTERS, 0)
        self._new = dict.fromkeys(_COUNTERS, 0)  # counted and not exported yet
        self._exported_at = time.monotonic()

    def add(self, step: Step) -> None:
        """Count one step of any request; exported twice a second and as an answer ends.

        Every metric is a call into Triton that waits for an answer, so few are made.
        """
        new = self._new
        new["steps"] += 1
        new["output_tokens"] += len(step.tokens)
        new["draft_tokens"] += step.drafted
        new["accepted_draft_tokens"] += step.accepted
        if step.finish or time.monotonic() - self._exported_at >= _EXPORT_SECONDS:
            self.export()

    def export(self) -> None:
        """Export the counts since the last call; also called when no request is in flight."""
        if self._new["steps"]:
            self._export_counters()
            self._set_gauges(self._totals)
        self._also()

    def add_request(self, used: Counters) -> None:
        """Count a request of this process; others count theirs."""
        if used.steps:
            for name in _COUNTERS:
                self._new[name] += getattr(used, name)
            self._export_counters()
            self._set_gauges_of_all_processes()

    def _export_counters(self) -> None:
        self._exported_at = time.monotonic()
        for name, count in self._new.items():
            self._totals[name] += count
            if count:
                self._metrics[name].increment(count)
        self._new = dict.fromkeys(_COUNTERS, 0)

    def _set_gauges_of_all_processes(self) -> None:
        # Another process may count between the reading and the setting, and have set the gauges
        # before: what is set is right only if the sums are the same after it.
        sums, seen = self._sums(), None
        while seen != sums:
            self._set_gauges(sums)
            seen, sums = sums, self._sums()

    def _sums(self) -> dict[str, float]:
        return {name: self._metrics[name].value() for name in _COUNTERS}

    def _set_gauges(self, totals: Mapping[str, float]) -> None:
        rate = totals["accepted_draft_tokens"] / max(1, totals["draft_tokens"])
        self._metrics["acceptance_rate"].set(rate)
        self._metrics["acceptance_length"].set(totals["output_tokens"] / totals["steps"])


def new_family(name: str, description: str, kind: Any) -> Any:
    """Return a family of metrics of specpipe; it must live as long as its metrics."""
    return pb_utils.MetricFamily(name=f"specpipe_{name}", description=description, kind=kind)
