"""`specpipe report`: compare two reports of `validate`, and export one."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from specpipe.cli.options import json_option
from specpipe.cli.output import end_json

report_argument = click.Path(path_type=Path)


@click.group()
def report() -> None:
    """Compare and export the reports of `specpipe validate`.

    \b
    Example:  specpipe report diff reports/before reports/after
    """


@report.command()
@click.argument("before", type=report_argument)
@click.argument("after", type=report_argument)
@json_option
def diff(before: Path, after: Path, as_json: bool) -> None:
    """Show what changed between two reports.

    BEFORE and AFTER are folders of reports or files report.json. Figures of single requests get a
    95 % interval of the change, by bootstrap.

    \b
    Example:  specpipe report diff reports/before reports/after
    """
    from specpipe.report.diff import compare_reports, diff_markdown, read_report

    found = compare_reports(read_report(before), read_report(after))
    if as_json:
        changes = [{**asdict(c), "verdict": c.verdict} for c in found.changes]
        click.echo(json.dumps(diff_json(asdict(found), changes), indent=2))
    else:
        click.echo(diff_markdown(found, [str(before), str(after)]), nl=False)
    end_json()


def diff_json(found: dict[str, object], changes: list[dict[str, object]]) -> dict[str, object]:
    """Return the changes as plain values."""
    return {
        "conditions": found["conditions"],
        "changes": changes,
        "verdicts": found["verdicts"],
        "differences": found["differences"],
    }


@report.command()
@click.argument("folder", type=report_argument)
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["aiperf", "model-card"]),
    help="aiperf: a folder for each load and arm of the scenarios, as aiperf writes a run. "
    "model-card: a section in Markdown.",
)
@json_option
def export(folder: Path, kind: str, as_json: bool) -> None:
    """Write a report in another form, next to its files.

    \b
    Example:  specpipe report export reports/smollm2-135m_hybrid --format model-card
    """
    from specpipe.report.export import write_export

    path = write_export(folder, kind)
    click.echo(json.dumps(export_json(path, kind)) if as_json else str(path))
    end_json()


def export_json(path: Path, kind: str) -> dict[str, str]:
    """Return what was written as plain values."""
    return {"path": str(path), "format": kind}
