"""Runs are exported with the fields, units and shapes of aiperf's own records."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.report.aiperf import RECORDS, SUMMARY, records, runs_of, summary, write_runs

KNOWN = json.loads((Path(__file__).parents[2] / "data/aiperf_fields.json").read_text())
LINE = {
    "scenario": "concurrency", "load": "2 clients", "arm": "plain", "prompt": 3, "asked": 17,
    "output_tokens": 5, "sent_ns": 10**18, "times_s": [0.1, 0.3, 0.5], "error": None,
}  # fmt: skip
LATER = {**LINE, "sent_ns": 10**18 + 500_000_000, "times_s": [0.3, 0.5], "output_tokens": 3}
FAILED = {**LINE, "error": "refused"}


def written(*lines: dict[str, Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def check(values: dict[str, Any], record: str, *, more: tuple[str, ...] = ()) -> None:
    """Check an object against a record of aiperf: all that it requires, nothing that it lacks."""
    known = KNOWN["records"][record]
    assert set(known["required"]) <= values.keys()
    assert values.keys() <= {*known["required"], *known["optional"], *more}


def test_every_field_of_a_request_is_one_of_aiperfs_record() -> None:
    for record in records([LINE, LATER, FAILED]):
        check(record, "MetricRecordInfo")
        check(record["metadata"], "MetricRecordMetadata")
        for name, metric in record["metrics"].items():
            check(metric, "MetricValue")
            assert metric["unit"] == KNOWN["units"][name]
        if record["error"]:
            check(record["error"], "ErrorDetails")


def test_a_request_has_its_times_and_tokens() -> None:
    first, second = records([LINE, FAILED])
    values = {name: metric["value"] for name, metric in first["metrics"].items()}
    assert values["time_to_first_token"] == 100.0
    assert values["inter_chunk_latency"] == pytest.approx([200, 200])
    assert values["inter_token_latency"] == pytest.approx(100)
    assert values["input_sequence_length"] == 17
    times = first["metadata"]
    assert times["request_end_ns"] - times["request_start_ns"] == 500_000_000
    assert second["error"]["message"] == "refused" and second["metrics"] == {}


def test_the_summary_has_aiperfs_fields_and_the_figures_of_all_requests() -> None:
    place = ("concurrency", "2 clients", "plain")
    found = summary(list(records([LINE, LATER, FAILED])), place, "tiny")
    check(found, "JsonExportData")
    metrics = {name: value for name, value in found.items() if name in KNOWN["units"]}
    for name, metric in metrics.items():
        check(metric, "JsonMetricResult")
        assert metric["unit"] == KNOWN["units"][name]
    assert metrics["request_count"]["avg"] == 2 and metrics["error_request_count"]["avg"] == 1
    assert metrics["benchmark_duration"]["avg"] == 1.0  # from the first to the last answer's end
    assert metrics["output_token_throughput"]["avg"] == 8.0
    assert metrics["time_to_first_token"]["p50"] == pytest.approx(200)
    assert metrics["inter_chunk_latency"]["count"] == 3
    (phase,) = found["input_config"]["phases"]
    assert (phase["type"], phase["concurrency"], phase["requests"]) == ("concurrency", 2, 3)


def test_an_open_loop_is_a_poisson_process_and_a_run_without_answers_has_no_latencies() -> None:
    found = summary(list(records([FAILED])), ("concurrency", "0.5 requests/s", "plain"), "tiny")
    (phase,) = found["input_config"]["phases"]
    assert (phase["type"], phase["rate"]) == ("poisson", 0.5)
    assert "request_latency" not in found and found["request_count"]["avg"] == 0


def test_each_load_and_arm_is_a_run_of_its_own_and_older_ones_are_removed(tmp_path: Path) -> None:
    fast = {**LINE, "arm": "speculative"}
    untimed = {"scenario": "answers", "arm": "reference"}
    assert len(runs_of(written(LINE, fast, untimed))) == 2
    write_runs(tmp_path / "aiperf", written({**LINE, "load": "9 clients"}), "tiny")
    (tmp_path / "report.json").write_text('{"metrics": {}, "conditions": {}}')
    (tmp_path / "trials.jsonl").write_text(written(LINE, fast, untimed))
    words = ["report", "export", str(tmp_path), "--format", "aiperf"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    folder = Path(result.stdout.strip())
    runs = sorted(path.parent.name for path in folder.glob(f"*/{SUMMARY}"))
    assert runs == ["concurrency_2-clients_plain", "concurrency_2-clients_speculative"]
    assert [len((folder / run / RECORDS).read_text().splitlines()) for run in runs] == [1, 1]
