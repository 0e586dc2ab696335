"""Exports of a report: runs as aiperf writes them, and a section for a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.core.artifacts import write_text
from specpipe.core.errors import ConfigError
from specpipe.report.aiperf import write_runs
from specpipe.report.diff import Values, read_report

AIPERF = "aiperf"  # the folder of its runs


def write_export(folder: Path, kind: str) -> Path:
    """Write a report in another form into its folder, and return the file or folder.

    Raises ConfigError if the folder has no report.
    """
    report = read_report(folder)
    if kind == "model-card":
        write_text(folder / "model-card.md", model_card(report))
        return folder / "model-card.md"
    lines = folder / "trials.jsonl"
    if not lines.is_file():
        raise ConfigError(f"{lines}: no such file", hint="run `specpipe validate` again")
    return write_runs(folder / AIPERF, lines.read_text(encoding="utf-8"), folder.resolve().name)


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
