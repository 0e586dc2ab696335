"""The metrics of the batch are the totals of the batcher; the backend's module is a mock."""

from typing import Any

import pytest

from specpipe.config.speculation import PromptLookup
from specpipe.core.contracts import Sampling
from specpipe.runtime.batcher import Batcher
from specpipe.runtime.budget import Budget
from specpipe.speculate.decode import Limits, Step, decode
from specpipe.speculate.none import NoProposer
from specpipe.speculate.prompt_lookup import build
from tests.helpers import triton_metrics
from tests.helpers.toy_engine import ToyEngine
from tests.helpers.triton_metrics import MetricFamily, totals


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    triton_metrics.install(monkeypatch)
    from specpipe.runtime.triton import batch_metrics

    return batch_metrics


def test_the_metrics_of_a_batch_are_the_totals_of_its_steps(module: Any) -> None:
    engine = ToyEngine()
    batcher = Batcher({"target": engine}, 64, Budget())
    meter = module.BatchMeter("tensorrt_llm", "prompt_lookup", batcher)
    options = PromptLookup("prompt_lookup", 4, 1, 3)
    prompt = [1, 2, 3, 1, 2, 3, 1, 2] * 5
    steps: list[Step] = []
    for _ in range(2):
        proposer = build(options, {})
        stream = batcher.add(decode(proposer, prompt, Sampling(), Limits(20)), adaptive=False)
        while stream in batcher.streams:
            found = [event for _, event in batcher.round() if isinstance(event, Step)]
            for step in found:
                meter.add(step)
            steps += found
            meter.export()
    meter.export()
    got = totals()
    assert got["engine_steps_total"] == len(engine.steps) == len(steps)
    assert got["engine_rows_total"] == sum(engine.steps)
    assert got["prefix_cache_queries_total"] == 2 * len(prompt)
    assert got["prefix_cache_hits_total"] == 32  # the second request: its first whole block
    assert got["kv_blocks"] == 64 and got["kv_blocks_used"] == 0
    assert got["draft_nodes_scored_total"] > 0 and got["preemptions_total"] == 0
    for depth in range(1, 5):
        assert got[f"drafted_at_depth_total{depth}"] == sum(s.drafted >= depth for s in steps)
        assert got[f"accepted_at_depth_total{depth}"] == sum(s.accepted >= depth for s in steps)


def test_a_metric_that_did_not_change_is_not_exported_again(module: Any) -> None:
    engine = ToyEngine()
    batcher = Batcher({"target": engine}, 64, Budget())
    meter = module.BatchMeter("tensorrt_llm", "none", batcher)
    meter.export()
    calls = {name: metric.calls for name, metric in MetricFamily.made.items()}
    meter.export()
    assert {name: metric.calls for name, metric in MetricFamily.made.items()} == calls


def test_a_stream_that_is_not_counted_moves_no_metric(module: Any) -> None:
    batcher = Batcher({"target": ToyEngine()}, 64, Budget())
    meter = module.BatchMeter("tensorrt_llm", "none", batcher)
    meter.export()
    before = totals()
    stream = batcher.add(decode(NoProposer(), [1] * 40, Sampling(), Limits(3)), counted=False)
    while stream in batcher.streams:
        batcher.round()
    meter.export()
    assert totals() == before
