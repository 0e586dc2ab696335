"""Writes the report of a training, report.json and report.html; without times, so that reruns give
equal bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

from specpipe.core.artifacts import write_text
from specpipe.report import html
from specpipe.train.accuracy import HeadAccuracy
from specpipe.train.categories import Measures
from specpipe.train.loop import Point

_TOP = (1, 2, 3, 5, 10)


@dataclass(frozen=True)
class TrainingReport:
    """One training, judged on documents that it did not learn from."""

    title: str
    facts: Mapping[str, str | int | float]
    curve: Sequence[Point]
    before: Mapping[str, float]  # on the whole hold-out, before the first step
    after: Mapping[str, float]
    heads: Sequence[HeadAccuracy] = ()
    categories: Mapping[str, Measures] = field(default_factory=dict)  # after; of the documents


def write_report(report: TrainingReport, folder: Path) -> None:
    """Write report.json and report.html into `folder`."""
    write_text(folder / "report.json", json.dumps(asdict(report), indent=2, sort_keys=True) + "\n")
    write_text(folder / "report.html", to_html(report))


def to_html(report: TrainingReport) -> str:
    """Return the report as one page without outside references."""
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        html.facts({name: str(value) for name, value in report.facts.items()}),
        html.heading("On the hold-out", "Whole documents that took no part in the training."),
        html.table(
            ("measure", "before", "after"),
            [(n, f"{report.before[n]:.4f}", f"{v:.4f}") for n, v in report.after.items()],
        ),
    ]
    if report.categories:
        parts += _categories_table(report.categories)
    if report.heads:
        parts += _accuracy_table(report.heads)
    return html.page(report.title, [*parts, *_curves(report.curve)])


def _categories_table(categories: Mapping[str, Measures]) -> list[str]:
    measures = list(next(iter(categories.values())))
    rows = [(name, *(f"{v[m]:.3f}" for m in measures)) for name, v in categories.items()]
    heading = html.heading("By category", "After the training, on the documents of each category.")
    return [heading, html.table(("", *measures), rows)]


def _accuracy_table(heads: Sequence[HeadAccuracy]) -> list[str]:
    rows = [
        (f"head {k}", str(head.positions), *(f"{head.top[n - 1]:.3f}" for n in _TOP))
        for k, head in enumerate(heads)
    ]
    note = "Share of labels among a head's top tokens; head k predicts k + 2 tokens ahead."
    names = ("", "positions", *(f"top-{n}" for n in _TOP))
    return [html.heading("Accuracy of the heads", note), html.table(names, rows)]


def _curves(curve: Sequence[Point]) -> list[str]:
    loss = {"training loss": [(float(p.step), p.loss) for p in curve if p.step]}
    names = list(curve[0].held_out)
    series = {name: [(float(p.step), p.held_out[name]) for p in curve] for name in names}
    return [
        html.heading("Loss", "Mean since the last point."),
        html.lines(loss, "step", "loss"),
        html.heading("Curve of the hold-out", "On a part of it, at every checkpoint."),
        html.lines(series, "step", "value"),
    ]
