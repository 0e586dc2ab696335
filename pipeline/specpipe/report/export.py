"""Exports of a report: records as aiperf writes them, and a section for a model card."""

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from specpipe.core.artifacts import write_text
from specpipe.core.errors import ConfigError
from specpipe.report.diff import Values, read_report

NANOSECONDS = 1_000_000_000
AIPERF = "profile_export.jsonl"


def write_export(folder: Path, kind: str) -> Path:
    """Write a report in another form into its folder, and return the file.

    Raises ConfigError if the folder has no report.
    """
    report = read_report(folder)
    if kind == "model-card":
        write_text(folder / "model-card.md", model_card(report))
        return folder / "model-card.md"
    lines = folder / "trials.jsonl"
    if not lines.is_file():
        raise ConfigError(f"{lines}: no such file", hint="run `specpipe validate` again")
    records = aiperf_records(lines.read_text(encoding="utf-8"))
    write_text(folder / AIPERF, "".join(json.dumps(record) + "\n" for record in records))
    return folder / AIPERF


def aiperf_records(lines: str) -> Iterator[dict[str, Any]]:
    """Yield the requests of trials.jsonl in the shape of aiperf's profile_export.jsonl.

    Requests of the reference and of `answers` are left out: they have no times of arrival. The
    fields are those of aiperf 0.13's `MetricRecordInfo`; metrics have its names and units.
    """
    found = [json.loads(line) for line in lines.split("\n") if line.strip()]
    timed = [line for line in found if line.get("sent_ns")]
    for number, line in enumerate(timed):
        error = line["error"]
        yield {
            "metadata": _metadata(number, line),
            "metrics": {} if error else _metrics(line),
            "error": {"code": 500, "type": "SpecpipeError", "message": error} if error else None,
        }


def _metadata(number: int, line: Mapping[str, Any]) -> dict[str, Any]:
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


def _metrics(line: Mapping[str, Any]) -> dict[str, Any]:
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


CARD = ("exact_match", "defects", "speedup_over_plain", "acceptance_length", "tokens_per_second",
        "kl_mean", "top1_agreement", "task_accuracy", "task_flips")  # fmt: skip


def model_card(report: Values) -> str:
    """Return a section for a model card: figures of the speculative arm, and their conditions."""
    conditions = report["conditions"]
    lines = ["## Speculative decoding", "", "| metric | value | |", "|---|---|---|"]
    for name in CARD:
        metric = report["metrics"].get(name, {})
        arms = metric.get("arms", {})
        found = arms.get("speculative") or arms.get("plain")
        if found is not None:
            lines.append(
                f"| {name} ({metric['unit']}) | {_card_value(found)} | {metric['meaning']} |"
            )
    lines += ["", "Measured by `specpipe validate` with:", ""]
    lines += [f"- {name}: {text}" for name, text in conditions.items()]
    return "\n".join(lines) + "\n"


def _card_value(found: Mapping[str, Any]) -> str:
    text = f"{found['median']:.4g}"
    if found.get("interval"):
        low, high = found["interval"]
        text += f" [{low:.4g}, {high:.4g}]"
    return text
