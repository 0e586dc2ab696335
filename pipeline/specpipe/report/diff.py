"""What changed between two reports of `validate`: conditions, figures with intervals, verdicts.

Figures of single requests are compared by bootstrap: the interval is that of the difference of the
medians. A change is clear if its interval does not contain zero.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.core.errors import ConfigError
from specpipe.core.statistics import bootstrap_difference

Values = Mapping[str, Any]  # a report.json


@dataclass(frozen=True)
class Change:
    """One figure in both reports."""

    metric: str
    arm: str
    before: float | None
    after: float | None
    interval: tuple[float, float] | None  # of after - before, 95 %; None: no samples
    larger_is_better: bool

    @property
    def verdict(self) -> str:
        """Return better, worse, no clear change, or that only one report has the figure."""
        if self.before is None or self.after is None:
            return "only in one report"
        low, high = self.interval or (self.after - self.before,) * 2
        if low <= 0 <= high:
            return "equal" if self.before == self.after else "no clear change"
        return "better" if (low > 0) == self.larger_is_better else "worse"


@dataclass(frozen=True)
class ReportDiff:
    """All changes between two reports."""

    conditions: Mapping[str, tuple[str, str]]  # those that differ; "" where one has none
    changes: tuple[Change, ...]
    verdicts: Mapping[str, tuple[str, str]]  # gates and checks whose result differs
    differences: Mapping[str, tuple[int, int]]  # answers by scenario and class


def read_report(path: Path) -> dict[str, Any]:
    """Return a report.json, or that of a folder; raises ConfigError if it is none."""
    file = path / "report.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{file}: no such file", hint="run `specpipe validate`")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file}: cannot be read as a report: {error}", hint="run `specpipe validate`"
        ) from error
    if not isinstance(found, dict) or "metrics" not in found or "conditions" not in found:
        raise ConfigError(f"{file}: not a report of `specpipe validate`")
    return found


def compare_reports(before: Values, after: Values) -> ReportDiff:
    """Compare two reports."""
    return ReportDiff(
        {k: v for k, v in _both(before["conditions"], after["conditions"], "") if v[0] != v[1]},
        tuple(_changes(before, after)),
        {k: v for k, v in _both(_verdicts(before), _verdicts(after), "-") if v[0] != v[1]},
        {k: v for k, v in _both(_classes(before), _classes(after), 0) if v[0] != v[1]},
    )


def _both(
    before: Mapping[str, Any], after: Mapping[str, Any], missing: Any
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in dict.fromkeys((*before, *after)):
        yield name, (before.get(name, missing), after.get(name, missing))


def _changes(before: Values, after: Values) -> Iterator[Change]:
    for metric, (old, new) in _both(before["metrics"], after["metrics"], {}):
        arms = dict.fromkeys((*old.get("arms", {}), *new.get("arms", {})))
        for arm in arms:
            first, second = (_median(values, arm) for values in (old, new))
            left, right = (_samples(report, metric, arm) for report in (before, after))
            interval = bootstrap_difference(left, right) if left and right else None
            better = bool((new or old)["larger_is_better"])
            yield Change(metric, arm, first, second, interval, better)


def _median(metric: Values, arm: str) -> float | None:
    found = metric.get("arms", {}).get(arm)
    return None if found is None else float(found["median"])


def _samples(report: Values, metric: str, arm: str) -> list[float]:
    """Return the values of single requests or prompts; empty if the report has none."""
    if metric == "speedup_over_plain":
        return [float(v) for v in report.get("speedups", {}).values()]
    compute = _OF_TRIAL.get(metric)
    if compute is None:
        return []
    trials = [trial for trial in report.get("trials", []) if trial["arm"] == arm]
    return [value for trial in trials if (value := compute(trial)) is not None]


def _ttft_ms(trial: Values) -> float | None:
    return float(trial["first_s"]) * 1e3


def _tpot_ms(trial: Values) -> float | None:
    later = trial["output_tokens"] - trial["first_tokens"]
    return float(trial["total_s"] - trial["first_s"]) * 1e3 / later if later > 0 else None


def _tokens_per_second(trial: Values) -> float | None:
    return float(trial["output_tokens"] / trial["total_s"])


_OF_TRIAL = {"ttft_ms": _ttft_ms, "tpot_ms": _tpot_ms, "tokens_per_second": _tokens_per_second}


def _verdicts(report: Values) -> dict[str, str]:
    found = [(gate["name"], gate["passed"]) for gate in report["gates"]]
    found += [(check["name"], check["passed"]) for check in report["checks"]]
    return {name: "passed" if passed else "FAILED" for name, passed in found}


def _classes(report: Values) -> dict[str, int]:
    counts: dict[str, int] = {}
    for scenario in report.get("scenarios", []):
        for found in scenario["differences"]:
            name = f"{scenario['scenario']}, {found['arm']} against {found['against']}, "
            counts[name + found["kind"]] = counts.get(name + found["kind"], 0) + 1
    return counts


def diff_markdown(found: ReportDiff, names: Sequence[str]) -> str:
    """Return the changes as Markdown; `names` are those of the two reports."""
    lines = [f"# {names[0]} compared with {names[1]}", "", "## Conditions that differ", ""]
    lines += [f"- {k}: {a or '-'} -> {b or '-'}" for k, (a, b) in found.conditions.items()] or [
        "none"
    ]
    lines += ["", "## Figures", "", "| metric | arm | before | after | change [95 %] | |"]
    lines += ["|---|---|---|---|---|---|", *(_line(change) for change in found.changes)]
    lines += ["", "## Gates and checks that changed", ""]
    lines += [f"- {k}: {a} -> {b}" for k, (a, b) in found.verdicts.items()] or ["none"]
    lines += ["", "## Differing answers", ""]
    lines += [f"- {k}: {a} -> {b}" for k, (a, b) in found.differences.items()] or ["no change"]
    return "\n".join(lines) + "\n"


def _line(change: Change) -> str:
    values = [_short(change.before), _short(change.after), "-"]
    if change.before is not None and change.after is not None:
        values[2] = f"{change.after - change.before:+.3g}"
        if change.interval is not None:
            values[2] += f" [{change.interval[0]:+.3g}, {change.interval[1]:+.3g}]"
    return f"| {change.metric} | {change.arm} | {' | '.join(values)} | {change.verdict} |"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
