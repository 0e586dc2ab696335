"""The report as one HTML page without scripts: verdict, four pictures, tables."""

from collections.abc import Iterator, Sequence

from specpipe.report import charts, html
from specpipe.validate.differences import KINDS
from specpipe.validate.differences import lines as difference_lines
from specpipe.validate.findings import findings
from specpipe.validate.load_figures import LoadPoint
from specpipe.validate.markdown import FIGURES_NOTE, divergence_lines, format_figure, verdict
from specpipe.validate.metrics import speedups_by_prompt
from specpipe.validate.report import LABELS, Report
from specpipe.validate.trials import Arm

Picture = tuple[str, str, str]  # title, note, shapes


def to_html(report: Report) -> str:
    """Return one page without external references."""
    arms = [arm for arm in LABELS if report.trials.of(arm)]
    parts = [
        html.verdict(report.passed, report.config.name),
        html.summary(findings(report)),
        html.pictures([_speedups(report), _latency(report), _depths(report), _margins(report)]),
        html.heading("Gates", ""),
        html.items([f"{verdict(g.passed)}: {g}" for g in report.gates] or ["none configured"]),
        *_checks(report),
        html.heading("Conditions", ""),
        html.facts(report.conditions()),
        *_figures(report, arms),
        *_scenarios(report),
        *_omitted(report),
        *_differences(report),
    ]
    return html.page(f"Validation of {report.config.name}", parts)


def _checks(report: Report) -> Iterator[str]:
    if report.checks:
        yield html.heading("Checks", "")
        yield html.items([f"{verdict(c.passed)}: {c}" for c in report.checks])


def _figures(report: Report, arms: Sequence[Arm]) -> Iterator[str]:
    rows = [
        [
            f"{m.name} ({m.unit})",
            *(format_figure(m, report.figures[m.name].get(a)) for a in arms),
            m.meaning,
        ]
        for m in report.metrics
        if report.figures[m.name]
    ]
    yield html.heading("Figures", FIGURES_NOTE)
    yield html.table(["", *(LABELS[arm] for arm in arms), "meaning"], rows)


def _scenarios(report: Report) -> Iterator[str]:
    for result in report.results:
        yield html.heading(f"Scenario {result.scenario}", result.meaning)
        if result.omitted:
            yield html.items([f"not measured: {result.omitted}"])
        for sheet in result.sheets:
            yield html.subheading(sheet.title, sheet.note)
            yield html.table(sheet.head, sheet.rows)


def _omitted(report: Report) -> Iterator[str]:
    if report.trials.omitted:
        left_out = [f"{name}: {reason}" for name, reason in report.trials.omitted.items()]
        yield html.heading("Not measured", "")
        yield html.items(left_out)


def _differences(report: Report) -> Iterator[str]:
    yield html.heading("Divergences from the reference", "")
    yield html.items(divergence_lines(report) or ["none"])
    if found := list(difference_lines(report.differences())):
        yield html.heading("Differences by class", "Defects first, then by margin.")
        yield html.items(found)


def _speedups(report: Report) -> Picture:
    title, note = "Speed-up by prompt", "One request at a time; below the line is slower."
    ratios = speedups_by_prompt(report.trials, "plain", "speculative")
    found = report.figures.get("speedup_over_plain", {}).get("speculative")
    if not ratios or found is None:
        reason = report.trials.omitted.get("speedup_over_plain", "the run has one arm only")
        return title, note, charts.empty(f"Not measured: {reason}.")
    values = {str(prompt): ratio for prompt, ratio in ratios.items()}
    return title, note, charts.ratios(values, found.median, found.interval, title)


def _latency(report: Report) -> Picture:
    title = "Latency over concurrency"
    note = "Time per output token of a request under a closed loop, P50 and P95."
    found = [point for result in report.results for point in result.points]
    series = {
        f"{SHORT[arm]} {name}": charts.Curve(_percentiles(found, arm, index), colour, index > 0)
        for arm, colour in (("plain", "var(--blue)"), ("speculative", "var(--amber)"))
        for index, name in enumerate(("P50", "P95"))
        if _percentiles(found, arm, index)
    }
    if not series:
        return (
            title,
            note,
            charts.empty(
                "Not measured: add concurrency to validate.scenarios, or run validate --full."
            ),
        )
    return title, note, charts.curves(series, "clients", "ms per token", title)


SHORT = {"plain": "plain", "speculative": "spec."}


def _percentiles(points: Sequence[LoadPoint], arm: str, index: int) -> list[charts.Point]:
    """Return the time per output token by clients of closed loops."""
    found = [p for p in points if p.arm == arm and p.clients is not None and p.tpot_ms]
    return sorted((float(p.clients or 0), p.tpot_ms[index]) for p in found)


def _depths(report: Report) -> Picture:
    title = "Acceptance by depth"
    note = "Of all steps; conditional: of the steps that accepted all tokens before."
    depths = [depth for depth in report.depths() if depth.accepted]
    if not depths:
        return title, note, charts.empty("Not measured: the server shows no accepted draft tokens.")
    series = {
        "of all steps": [(float(d.depth), d.joint) for d in depths],
        "conditional": [(float(d.depth), d.conditional) for d in depths],
    }
    return title, note, charts.groups(series, "depth of the draft token", "share accepted", title)


def _margins(report: Report) -> Picture:
    title = "Differences by margin"
    note = "Between the arms and from the reference, in all scenarios."
    found = report.differences()
    if not found:
        compared = sum(sum(result.equality.compared.values()) for result in report.results)
        return title, note, charts.empty(f"None: {compared} pairs of answers are equal.")
    series = {
        str(kind): ([d.margin for d in found if d.kind == kind], colour)
        for kind, colour in zip(KINDS, ("var(--blue)", "var(--red)", "var(--quiet)"), strict=True)
    }
    return title, note, charts.margins(series, report.noise.limit, title)
