"""report.json, report.md and a self-contained report.html from one record."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe import html
from specpipe.artifacts import write_text
from specpipe.config import RunConfig
from specpipe.validate.checks import Check
from specpipe.validate.conditions import Setting, conditions
from specpipe.validate.gates import GateResult
from specpipe.validate.metrics import Figure, Metric, speedups_by_prompt
from specpipe.validate.trials import Arm, Divergence, Trials

LABELS: dict[Arm, str] = {
    "reference": "transformers, float32",
    "plain": "served, no speculation",
    "speculative": "served, speculation",
}


@dataclass(frozen=True)
class Report:
    """Everything that validation found, with the conditions it was found under."""

    config: RunConfig
    prompts: int
    metrics: Sequence[Metric]
    figures: Mapping[str, Mapping[Arm, Figure]]
    trials: Trials
    gates: Sequence[GateResult]
    setting: Setting
    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate was met and every check held."""
        return all(gate.passed for gate in self.gates) and all(c.passed for c in self.checks)

    def histogram(self) -> dict[int, int]:
        """Return how many steps accepted how many draft tokens, where steps can be seen."""
        counts = Counter(
            count - 1
            for decoding in self.trials.decodings
            if decoding.arm == "speculative"
            for count in decoding.step_tokens
        )
        return dict(sorted(counts.items()))

    def conditions(self) -> dict[str, str]:
        """Return what the numbers depend on."""
        return conditions(self.config, self.prompts, self.setting)


def write_report(report: Report, folder: Path) -> Path:
    """Write the three files into `folder`; returns the path of the HTML page."""
    write_text(folder / "report.json", json.dumps(to_json(report), indent=2) + "\n")
    write_text(folder / "report.md", to_markdown(report))
    write_text(folder / "report.html", to_html(report))
    return folder / "report.html"


def to_json(report: Report) -> dict[str, object]:
    """Return the report as plain values, raw trials included."""
    return {
        "passed": report.passed,
        "conditions": report.conditions(),
        "metrics": {
            metric.name: {
                "unit": metric.unit,
                "larger_is_better": metric.larger_is_better,
                "meaning": metric.meaning,
                "arms": {a: asdict(f) for a, f in report.figures[metric.name].items()},
            }
            for metric in report.metrics
        },
        "acceptance_histogram": report.histogram(),
        "divergences": [asdict(d) for d in report.trials.divergences],
        "gates": [asdict(gate) for gate in report.gates],
        "checks": [asdict(check) for check in report.checks],
        "left_out": dict(report.trials.omitted),
        "trials": [asdict(trial) for trial in report.trials.trials],
    }


def to_markdown(report: Report) -> str:
    """Return the report for people who read text."""
    lines = [f"# Validation of {report.config.name}: {'passed' if report.passed else 'FAILED'}", ""]
    lines += [f"- {key}: {value}" for key, value in report.conditions().items()]
    lines += ["", "Medians, in brackets the 10th and 90th percentile.", ""]
    lines += _table(report)
    lines += ["", "## Gates", ""]
    lines += [f"- {'ok' if g.passed else 'FAILED'}: {g}" for g in report.gates] or ["none"]
    lines += ["", "## Checks", ""]
    lines += [f"- {'ok' if c.passed else 'FAILED'}: {c}" for c in report.checks] or ["none"]
    if report.trials.omitted:
        lines += ["", "## Left out", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.trials.omitted.items()]
    lines += ["", "## Accepted draft tokens a step", ""]
    lines += [f"- {n}: {count} steps" for n, count in report.histogram().items()] or ["none"]
    lines += ["", "## Divergences from the reference", ""]
    lines += [f"- {text}" for text in divergence_lines(report)] or ["none"]
    return "\n".join(lines) + "\n"


def _table(report: Report) -> list[str]:
    arms = [arm for arm in LABELS if report.trials.of(arm)]
    rows = ["| | " + " | ".join(LABELS[arm] for arm in arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for metric in report.metrics:
        cells = [format_figure(metric, report.figures[metric.name].get(arm)) for arm in arms]
        rows.append(f"| {metric.name} ({metric.unit}) | " + " | ".join(cells) + " |")
    return rows


def format_figure(metric: Metric, figure: Figure | None) -> str:
    """Return a median with its spread, or a dash."""
    if figure is None:
        return "-"
    if figure.p10 == figure.p90:
        return _three_digits(figure.median)
    spread = f"{_three_digits(figure.p10)}, {_three_digits(figure.p90)}"
    return f"{_three_digits(figure.median)} [{spread}]"


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def divergence_lines(report: Report) -> list[str]:
    """Describe where every divergence is and how sure the reference was there."""
    return [_divergence_line(divergence) for divergence in report.trials.divergences]


def _divergence_line(found: Divergence) -> str:
    place = f"prompt {found.prompt}, {LABELS[found.arm]}: "
    texts = f"{found.got_text!r} instead of {found.expected_text!r}"
    early = "it ends early; " if found.early else ""
    if found.position is None:
        return f"{place}{early}{texts}"
    token = f"token {found.position} is {found.got}, expected {found.expected}"
    margin = ""
    if found.margin is not None:
        margin = f"; the reference preferred its token by {found.margin:.3f}"
    return f"{place}{early}{token}{margin}; {texts}"


def to_html(report: Report) -> str:
    """Return one page without outside references."""
    arms = [arm for arm in LABELS if report.trials.of(arm)]
    rows = [
        [
            f"{m.name} ({m.unit})",
            *(format_figure(m, report.figures[m.name].get(a)) for a in arms),
            m.meaning,
        ]
        for m in report.metrics
    ]
    speeds = report.figures["tokens_per_second"]
    histogram = {str(n): float(count) for n, count in report.histogram().items()}
    speedup = report.figures["speedup_over_plain"]
    ratios = speedups_by_prompt(report.trials, "plain", "speculative") if speedup else {}
    gates = [f"{'met' if g.passed else 'FAILED'}: {g}" for g in report.gates]
    checks = [f"{'held' if c.passed else 'FAILED'}: {c}" for c in report.checks]
    parts = [
        html.verdict(report.passed, report.config.name),
        html.facts(report.conditions()),
        html.heading("Gates", ""),
        html.items(gates or ["none configured"]),
        *([html.heading("Checks", ""), html.items(checks)] if checks else []),
        html.heading("Figures", "Medians, in brackets the 10th and 90th percentile."),
        html.table(["", *(LABELS[arm] for arm in arms), "meaning"], rows),
        html.heading("Tokens per second", "One request at a time; larger is better."),
        html.bars({LABELS[arm]: speeds[arm].median for arm in arms if arm in speeds}, "tokens/s"),
    ]
    if histogram:
        parts += [
            html.heading(
                "Accepted draft tokens a step", "How many steps accepted how many tokens."
            ),
            html.columns(histogram, "accepted draft tokens", "steps"),
        ]
    if ratios:
        parts += [
            html.heading(
                "Speed-up by prompt",
                "Speculation over the same server without it; the "
                "line is 1, below it speculation loses.",
            ),
            html.columns({str(p): r for p, r in ratios.items()}, "prompt", "speed-up", mark=1.0),
        ]
    if report.trials.omitted:
        left_out = [f"{name}: {reason}" for name, reason in report.trials.omitted.items()]
        parts += [html.heading("Left out", ""), html.items(left_out)]
    parts += [
        html.heading("Divergences from the reference", ""),
        html.items(divergence_lines(report) or ["none"]),
    ]
    return html.page(f"Validation of {report.config.name}", parts)
