"""Write report.json, report.md and a self-contained report.html from one record."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import write_text
from specpipe.report import html
from specpipe.validate.checks import Check
from specpipe.validate.conditions import Setting, conditions
from specpipe.validate.gates import GateResult
from specpipe.validate.metrics import Figure, Metric, speedups_by_prompt
from specpipe.validate.trials import Arm, Divergence, Trials

LABELS: dict[Arm, str] = {
    "reference": "transformers, float32",
    "plain": "plain decoding",
    "speculative": "speculative decoding",
}


@dataclass(frozen=True)
class Report:
    """The results of a validation, and its conditions."""

    config: RunConfig
    prompts: int
    metrics: Sequence[Metric]
    figures: Mapping[str, Mapping[Arm, Figure]]
    trials: Trials
    gates: Sequence[GateResult]
    setting: Setting
    checks: tuple[Check, ...] = ()
    words: Mapping[int, str] = field(default_factory=dict)  # text of tokens in divergences

    @property
    def passed(self) -> bool:
        """Whether every gate and every check passed."""
        return all(gate.passed for gate in self.gates) and all(c.passed for c in self.checks)

    def histogram(self) -> dict[int, int]:
        """Return the number of steps by accepted draft tokens; empty if the server hides steps."""
        counts = Counter(
            count - 1
            for decoding in self.trials.decodings
            if decoding.arm == "speculative"
            for count in decoding.step_tokens
        )
        return dict(sorted(counts.items()))

    def conditions(self) -> dict[str, str]:
        """Return the conditions of the figures."""
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
    """Return the report as text in Markdown."""
    lines = [f"# Validation of {report.config.name}: {'passed' if report.passed else 'FAILED'}", ""]
    lines += [f"- {key}: {value}" for key, value in report.conditions().items()]
    lines += ["", "Medians, with the 10th and 90th percentiles in brackets.", ""]
    lines += _table(report)
    lines += ["", "## Gates", ""]
    lines += [f"- {_verdict(g.passed)}: {g}" for g in report.gates] or ["none"]
    lines += ["", "## Checks", ""]
    lines += [f"- {_verdict(c.passed)}: {c}" for c in report.checks] or ["none"]
    if report.trials.omitted:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.trials.omitted.items()]
    lines += ["", "## Accepted draft tokens per step", ""]
    lines += [
        f"- {n}: {count} step{'s' * (count != 1)}" for n, count in report.histogram().items()
    ] or ["none"]
    lines += ["", "## Divergences from the reference", ""]
    lines += [f"- {text}" for text in divergence_lines(report)] or ["none"]
    return "\n".join(lines) + "\n"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


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
    """Return a line for each divergence, with the logit margin of the reference."""
    return [_divergence_line(divergence, report.words) for divergence in report.trials.divergences]


def _divergence_line(found: Divergence, words: Mapping[int, str]) -> str:
    place = f"prompt {found.prompt}, {LABELS[found.arm]}: "
    texts = f"{found.got_text!r} instead of {found.expected_text!r}"
    early = "ends early; " if found.early else ""
    if found.position is None:
        return f"{place}{early}{texts}"
    got, expected = (_token(number, words) for number in (found.got, found.expected))
    token = f"token {found.position} is {got}, expected {expected}"
    margin = ""
    if found.margin is not None:
        margin = f"; logit margin of the reference: {found.margin:.3f}"
    return f"{place}{early}{token}{margin}; text: {texts}"


def _token(number: int | None, words: Mapping[int, str]) -> str:
    if number is None:
        return "none (the answer had ended)"
    return f"{number} ({words[number]!r})" if number in words else str(number)


def to_html(report: Report) -> str:
    """Return one page without external references."""
    arms = [arm for arm in LABELS if report.trials.of(arm)]
    rows = [
        [
            f"{m.name} ({m.unit})",
            *(format_figure(m, report.figures[m.name].get(a)) for a in arms),
            m.meaning,
        ]
        for m in report.metrics
    ]
    gates = [f"{_verdict(g.passed)}: {g}" for g in report.gates]
    checks = [f"{_verdict(c.passed)}: {c}" for c in report.checks]
    parts = [
        html.verdict(report.passed, report.config.name),
        html.heading("Gates", ""),
        html.items(gates or ["none configured"]),
        *_speed_charts(report, arms),
        html.heading("Conditions", ""),
        html.facts(report.conditions()),
        html.heading("Figures", "Medians, with the 10th and 90th percentiles in brackets."),
        html.table(["", *(LABELS[arm] for arm in arms), "meaning"], rows),
        *([html.heading("Checks", ""), html.items(checks)] if checks else []),
    ]
    if histogram := {str(n): float(count) for n, count in report.histogram().items()}:
        parts += [
            html.heading(
                "Accepted draft tokens per step",
                "Number of steps by accepted tokens. A step is one target forward pass.",
            ),
            html.columns(histogram, "accepted draft tokens", "steps"),
        ]
    if report.trials.omitted:
        left_out = [f"{name}: {reason}" for name, reason in report.trials.omitted.items()]
        parts += [html.heading("Not measured", ""), html.items(left_out)]
    parts += [
        html.heading("Divergences from the reference", ""),
        html.items(divergence_lines(report) or ["none"]),
    ]
    return html.page(f"Validation of {report.config.name}", parts)


def _speed_charts(report: Report, arms: Sequence[Arm]) -> list[str]:
    """Return the charts of tokens per second and of the speed-up of each prompt."""
    speeds = report.figures["tokens_per_second"]
    parts = [
        html.heading("Tokens per second", "One request at a time; larger is better."),
        html.bars({LABELS[arm]: speeds[arm].median for arm in arms if arm in speeds}, "tokens/s"),
    ]
    if report.figures["speedup_over_plain"]:
        ratios = speedups_by_prompt(report.trials, "plain", "speculative")
        parts += [
            html.heading(
                "Speed-up by prompt",
                "Speculative over plain decoding. Below the line at 1 speculation is slower.",
            ),
            html.columns({str(p): r for p, r in ratios.items()}, "prompt", "speed-up", mark=1.0),
        ]
    return parts
