"""Runs as aiperf 0.13 writes them: a folder for each load and arm, which its own tools read.

`profile_export.jsonl` has a line for each request (`MetricRecordInfo`), and
`profile_export_aiperf.json` the figures of all (`JsonExportData`): aiperf/common/models/
record_models.py and export_models.py. Metrics have aiperf's names and units.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from specpipe.core.artifacts import write_text
from specpipe.core.statistics import percentile

NANOSECONDS = 1_000_000_000
RECORDS, SUMMARY = "profile_export.jsonl", "profile_export_aiperf.json"
SCHEMA = "1.4"  # of `JsonExportData` in 0.13
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
Line = Mapping[str, Any]  # of trials.jsonl
Place = tuple[str, str, str]  # scenario, load, arm


def write_runs(folder: Path, lines: str, model: str) -> Path:
    """Write a folder for each load and arm of trials.jsonl below `folder`, and return it.

    Files of an older export are removed. `model` is the name that the summaries give.
    """
    for old in (path for name in (RECORDS, SUMMARY) for path in folder.glob(f"*/{name}")):
        old.unlink()
    for place, requests in runs_of(lines).items():
        own = folder / "_".join(re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in place)
        own.mkdir(parents=True, exist_ok=True)
        found = list(records(requests))
        write_text(own / RECORDS, "".join(json.dumps(record) + "\n" for record in found))
        summarised = summary(found, place, model)
        write_text(own / SUMMARY, json.dumps(summarised, indent=2, sort_keys=True) + "\n")
    return folder


def runs_of(lines: str) -> dict[Place, list[Line]]:
    """Return the requests of trials.jsonl by scenario, load and arm, in the order of the file.

    Requests of the reference and of `answers` are left out: they have no times of arrival.
    """
    found: dict[Place, list[Line]] = {}
    for text in filter(str.strip, lines.split("\n")):
        line = json.loads(text)
        if line.get("sent_ns"):
            found.setdefault((line["scenario"], line["load"], line["arm"]), []).append(line)
    return found


def records(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Yield requests as lines of profile_export.jsonl (`MetricRecordInfo`)."""
    for number, line in enumerate(lines):
        error = line["error"]
        yield {
            "metadata": _metadata(number, line),
            "metrics": {} if error else _metrics(line),
            "error": {"code": 500, "type": "SpecpipeError", "message": error} if error else None,
        }


def _metadata(number: int, line: Line) -> dict[str, Any]:
    begin = int(line["sent_ns"])
    first, last = (begin + round(line["times_s"][i] * NANOSECONDS) for i in (0, -1))
    place = f"{line['scenario']}/{line['load']}/{line['arm']}"
    return {
        "session_num": number,
        "x_request_id": f"{place}/{number}",
        "x_correlation_id": f"{place}/{number}",
        "conversation_id": f"{line['scenario']}/{line['prompt']}",
        "turn_index": 0,
        "request_start_ns": begin,
        "request_ack_ns": first,
        "request_end_ns": last,
        "worker_id": place,
        "record_processor_id": "specpipe",
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }


def _metrics(line: Line) -> dict[str, Any]:
    times, count = line["times_s"], line["output_tokens"]
    gaps = [(b - a) * 1e3 for a, b in pairwise(times)]
    found = {
        "input_sequence_length": (line["asked"], "tokens"),
        "output_sequence_length": (count, "tokens"),
        "output_token_count": (count, "tokens"),
        "time_to_first_token": (times[0] * 1e3, "ms"),
        "request_latency": (times[-1] * 1e3, "ms"),
    }
    if gaps:
        found["inter_chunk_latency"] = (gaps, "ms")
    if count > 1:
        each = (times[-1] - times[0]) * 1e3 / (count - 1)
        found["inter_token_latency"] = (each, "ms")
        if each:
            found["output_token_throughput_per_user"] = (1e3 / each, "tokens/sec/user")
    return {name: {"value": value, "unit": unit} for name, (value, unit) in found.items()}


def summary(found: Sequence[Line], place: Place, model: str) -> dict[str, Any]:
    """Return the figures of all requests of a run (`JsonExportData`)."""
    scenario, load, _ = place
    good = [record["metrics"] for record in found if record["error"] is None]
    times = [record["metadata"] for record in found]
    seconds = (
        max(t["request_end_ns"] for t in times) - min(t["request_start_ns"] for t in times)
    ) / NANOSECONDS  # fmt: skip
    tokens = sum(metrics["output_token_count"]["value"] for metrics in good)
    totals = {
        "request_count": (len(good), "requests"),
        "error_request_count": (len(found) - len(good), "requests"),
        "benchmark_duration": (seconds, "sec"),
        "request_throughput": (len(good) / seconds if seconds else 0.0, "requests/sec"),
        "output_token_throughput": (tokens / seconds if seconds else 0.0, "tokens/sec"),
        "total_output_tokens": (tokens, "tokens"),
    }
    return {
        "schema_version": SCHEMA,
        **{name: {"unit": unit, "avg": value} for name, (value, unit) in totals.items()},
        **{name: _distribution(good, name) for name in dict.fromkeys(n for m in good for n in m)},
        "input_config": _input_config(load, len(found), scenario, model),
        "was_cancelled": False,
    }


def _distribution(good: Sequence[Line], name: str) -> dict[str, Any]:
    """Return the distribution of a metric over requests; gaps between responses count singly."""
    values = np.concatenate([np.ravel(m[name]["value"]) for m in good if name in m]).astype(float)
    shares = {f"p{share}": percentile(values.tolist(), share / 100) for share in PERCENTILES}
    unit = next(m[name]["unit"] for m in good if name in m)
    return {
        "unit": unit, "avg": float(values.mean()), "min": float(values.min()),
        "max": float(values.max()), "std": float(values.std()), "count": len(values),
        "sum": float(values.sum()), **shares,
    }  # fmt: skip


def _input_config(load: str, requests: int, scenario: str, model: str) -> dict[str, Any]:
    """Return how aiperf would have sent the load: `N clients`, or `N requests/s`."""
    number, unit = load.split(maxsplit=1)
    closed = unit.startswith("client")
    traffic: dict[str, Any] = (
        {"type": "concurrency", "concurrency": int(number)}
        if closed
        else {"type": "poisson", "rate": float(number)}
    )
    return {
        "models": {"items": [{"name": model}]},
        "endpoint": {"type": "chat", "urls": ["http://localhost"]},
        "datasets": [{"name": scenario, "type": "synthetic"}],
        "phases": [{"name": "profiling", "requests": requests, **traffic}],
    }
