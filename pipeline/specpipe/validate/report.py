"""report.json, report.md and a self-contained report.html from one record."""

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specpipe import __version__, html
from specpipe.artifacts import write_text
from specpipe.config import RunConfig
from specpipe.validate.gates import GateResult
from specpipe.validate.metrics import Figure, Metric
from specpipe.validate.trials import Arm, Trials

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
    versions: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether every gate was met."""
        return all(gate.passed for gate in self.gates)

    def histogram(self) -> dict[int, int]:
        """Return how many steps of the speculative arm accepted how many draft tokens."""
        counts = Counter(n - 1 for t in self.trials.of("speculative") for n in t.step_tokens)
        return dict(sorted(counts.items()))

    def conditions(self) -> dict[str, str]:
        """Return what the numbers depend on."""
        engine, validate = self.config.engine, self.config.validate
        return {
            "run": self.config.name,
            "model": self.config.target.model,
            "method": self.config.speculation.method
            + ("" if self.config.lossless else ", LOSSY where tokens are sampled"),
            "draft tokens": str(self.config.speculation.num_draft_tokens),
            "backend": f"{engine.backend}, {engine.dtype}, quantization {engine.quantization}",
            "machine": f"{_processor()}, {os.cpu_count()} CPUs",
            "load": f"{self.prompts} prompts, {validate.repeats} repeat(s), one request at a time, "
            f"at most {validate.max_tokens} tokens, greedy, arms alternating",
            "versions": ", ".join(f"{k} {v}" for k, v in sorted(self.versions.items())),
            "specpipe": __version__,
        }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
    """Say of every divergence where it is and how sure the reference was there."""
    return [
        f"prompt {d.prompt}, {LABELS[d.arm]}: token {d.position} is {d.got}, expected {d.expected}"
        + (f"; the reference preferred its token by {d.margin:.3f}" if d.margin is not None else "")
        for d in report.trials.divergences
    ]


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
    ratios = _ratios(report)
    gates = [f"{'met' if g.passed else 'FAILED'}: {g}" for g in report.gates]
    parts = [
        html.verdict(report.passed, report.config.name),
        html.facts(report.conditions()),
        html.heading("Gates", ""),
        html.items(gates or ["none configured"]),
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
            html.columns(ratios, "prompt", "speed-up", mark=1.0),
        ]
    parts += [
        html.heading("Divergences from the reference", ""),
        html.items(divergence_lines(report) or ["none"]),
    ]
    return html.page(f"Validation of {report.config.name}", parts)


def _ratios(report: Report) -> dict[str, float]:
    def rate(arm: Arm) -> dict[int, float]:
        return {t.prompt: t.total_s / len(t.tokens) for t in report.trials.of(arm) if t.tokens}

    plain, ours = rate("plain"), rate("speculative")
    return {str(p): plain[p] / ours[p] for p in sorted(ours) if p in plain}
