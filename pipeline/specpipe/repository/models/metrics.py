"""Prometheus: what speculation does, summed over all requests of one model.

Triton exports these beside its own metrics; no backend of upstream does.
"""

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from specpipe.repository.models.exchange import Counters
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


class Meter:
    """Counts steps; not thread-safe, like the engine it counts for.

    Several processes of one model may count: Triton adds their counters up, and the gauges are
    set from the sums.
    """

    def __init__(self, model: str, method: str) -> None:
        labels = {"model": model, "method": method}
        kinds = pb_utils.MetricFamily
        self._families = {
            **{n: _family(n + "_total", d, kinds.COUNTER) for n, d in _COUNTERS.items()},
            **{n: _family(n, d, kinds.GAUGE) for n, d in _GAUGES.items()},
        }
        self._metrics = {n: f.Metric(labels=labels) for n, f in self._families.items()}
        self._totals = dict.fromkeys(_COUNTERS, 0)

    def add(self, step: Step) -> None:
        """Count one step of any request."""
        self._count((1, len(step.tokens), step.drafted, step.accepted))
        self._set_gauges(self._totals)

    def add_request(self, used: Counters) -> None:
        """Count a request of this process; others count theirs."""
        if used.steps:
            self._count(
                (used.steps, used.output_tokens, used.draft_tokens, used.accepted_draft_tokens)
            )
            self._set_gauges({name: self._metrics[name].value() for name in _COUNTERS})

    def _count(self, counts: tuple[int, ...]) -> None:
        for name, count in zip(_COUNTERS, counts, strict=True):
            self._totals[name] += count
            if count:
                self._metrics[name].increment(count)

    def _set_gauges(self, totals: Mapping[str, float]) -> None:
        rate = totals["accepted_draft_tokens"] / max(1, totals["draft_tokens"])
        self._metrics["acceptance_rate"].set(rate)
        self._metrics["acceptance_length"].set(totals["output_tokens"] / totals["steps"])


def _family(name: str, description: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=f"specpipe_{name}", description=description, kind=kind)
