"""Prometheus: what the steps of the CPU engine hold, and the use of its KV pool."""

from collections.abc import Mapping

import triton_python_backend_utils as pb_utils

from specpipe.runtime.batcher import Batcher
from specpipe.runtime.triton.metrics import new_family
from specpipe.speculate.decode import Step

_COUNTERS = {
    "engine_steps": "Forward passes of the target, over all requests together",
    "engine_rows": "Rows of those: roots, scored draft tokens and prompt tokens",
    "draft_nodes_scored": "Draft tokens that the budget of rows admitted",
    "draft_nodes_cut": "Draft tokens that it left out",
    "preemptions": "Requests that gave their KV blocks back for older ones",
    "prefix_cache_queries": "Tokens of sequences that were looked up in the prefix cache",
    "prefix_cache_hits": "Tokens of those that were found",
}
_GAUGES = {
    "kv_blocks": "KV blocks in the pool, of 32 tokens",
    "kv_blocks_used": "KV blocks of running requests",
}
_BY_DEPTH = {
    "drafted_at_depth": "Steps with a draft of at least this depth",
    "accepted_at_depth": "Steps that accepted a draft token at this depth",
}
MOST_DEPTHS = 8  # with a label of their own


class BatchMeter:
    """Exports the totals of a batcher; not thread-safe, like the batcher."""

    def __init__(self, model: str, method: str, batcher: Batcher) -> None:
        labels = {"model": model, "method": method}
        kinds = pb_utils.MetricFamily
        families = [
            *((name, f"{name}_total", text, kinds.COUNTER) for name, text in _COUNTERS.items()),
            *((name, name, text, kinds.GAUGE) for name, text in _GAUGES.items()),
        ]
        self._families = {name: new_family(*rest) for name, *rest in families}
        self._metrics = {name: f.Metric(labels=labels) for name, f in self._families.items()}
        for name, text in _BY_DEPTH.items():
            family = self._families[name] = new_family(f"{name}_total", text, kinds.COUNTER)
            for depth in range(1, MOST_DEPTHS + 1):
                at = {**labels, "depth": str(depth)}
                self._metrics[f"{name} {depth}"] = family.Metric(labels=at)
        self._batcher = batcher
        self._depths = {name: [0] * MOST_DEPTHS for name in _BY_DEPTH}
        self._exported: dict[str, float] = {}

    def add(self, step: Step) -> None:
        """Count the depths of one step."""
        for name, depth in (
            ("drafted_at_depth", step.drafted),
            ("accepted_at_depth", step.accepted),
        ):
            counts = self._depths[name]
            for place in range(min(depth, MOST_DEPTHS)):
                counts[place] += 1

    def export(self) -> None:
        """Set every metric that has changed since the last call."""
        for name, value in self._totals().items():
            before = self._exported.get(name, 0)
            if value != before:
                metric = self._metrics[name]
                metric.set(value) if name in _GAUGES else metric.increment(value - before)
                self._exported[name] = value

    def _totals(self) -> Mapping[str, float]:
        counts, budget = self._batcher.counts, self._batcher.budget
        pool = self._batcher.engines["target"].pool_usage
        depths = {
            f"{name} {place + 1}": count
            for name, counts in self._depths.items()
            for place, count in enumerate(counts)
        }
        return {
            "engine_steps": counts.steps,
            "engine_rows": counts.rows,
            "draft_nodes_scored": budget.kept_nodes,
            "draft_nodes_cut": budget.cut_nodes,
            "preemptions": counts.preemptions,
            "prefix_cache_queries": counts.prefix_queries,
            "prefix_cache_hits": counts.prefix_hits,
            "kv_blocks": pool.blocks,
            "kv_blocks_used": pool.used_blocks,
            **depths,
        }
