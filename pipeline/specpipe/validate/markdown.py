"""The report as text in Markdown."""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.validate.differences import lines as difference_lines
from specpipe.validate.findings import findings
from specpipe.validate.metrics import Figure, Metric
from specpipe.validate.report import LABELS, Report
from specpipe.validate.scenarios import Result
from specpipe.validate.trials import Divergence

FIGURES_NOTE = (
    "Medians, with the 10th and 90th percentiles in brackets. Intervals of speed-ups are of the "
    "median, by bootstrap over the prompts."
)


def to_markdown(report: Report) -> str:
    """Return the report as text in Markdown."""
    lines = [f"# Validation of {report.config.name}: {'passed' if report.passed else 'FAILED'}", ""]
    lines += [f"- {key}: {value}" for key, value in report.conditions().items()]
    lines += ["", *(f"- {sentence}" for sentence in findings(report))]
    lines += ["", FIGURES_NOTE, ""]
    lines += _table(report)
    lines += ["", "## Gates", ""]
    lines += [f"- {verdict(g.passed)}: {g}" for g in report.gates] or ["none"]
    lines += ["", "## Checks", ""]
    lines += [f"- {verdict(c.passed)}: {c}" for c in report.checks] or ["none"]
    if report.trials.omitted:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {reason}" for name, reason in report.trials.omitted.items()]
    lines += ["", "## Accepted draft tokens per step", ""]
    lines += [
        f"- {n}: {count} step{'s' * (count != 1)}" for n, count in report.histogram().items()
    ] or ["none"]
    lines += ["", "## Divergences from the reference", ""]
    lines += [f"- {text}" for text in divergence_lines(report)] or ["none"]
    lines += ["", "## Differences by class", ""]
    lines += [f"- {text}" for text in difference_lines(report.differences())] or ["none"]
    for result in report.results:
        lines += ["", f"## Scenario {result.scenario}", "", result.meaning]
        lines += _scenario(result)
    return "\n".join(lines) + "\n"


def verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _scenario(result: Result) -> Iterator[str]:
    if result.omitted:
        yield from ("", f"Not measured: {result.omitted}.")
    for sheet in result.sheets:
        yield from ("", f"### {sheet.title}", "", sheet.note, "")
        yield from (_line(sheet.head), "|" + "---|" * len(sheet.head))
        yield from (_line(row) for row in sheet.rows)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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
    text = f"{_three_digits(figure.median)} [{spread}]"
    if figure.interval is not None:
        low, high = (_three_digits(value) for value in figure.interval)
        text += f" (95 %: {low} to {high})"
    return text


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
