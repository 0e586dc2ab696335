"""Loads the runs of a benchmark, measures them one by one, and prints what was measured."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.output import end_json, load, show_progress

if TYPE_CHECKING:
    from specpipe.bench.served import Progress, Remote
    from specpipe.cli.bench_tables import Table
    from specpipe.run.run import Run

    Measure = Callable[[Run, Progress], Sequence[Any]]


def load_runs(
    configs: Sequence[Path], workspace: Path, precisions: Sequence[str] = ()
) -> "list[Run]":
    """Return every run in every precision."""
    from specpipe.bench.precision import with_precision

    found = []
    for run in [load(path, workspace) for path in configs]:
        found += [with_precision(run, name) for name in precisions] or [run]
    return found


def report(
    runs: "Sequence[Run]",
    load_text: str,
    table: "Table",
    measure: "Measure",
    as_json: bool,
    remote: "Remote | None" = None,
) -> list[Any]:
    """Measure run by run and print; a table grows as the runs end. Returns all records."""
    from specpipe.bench.conditions import conditions
    from specpipe.cli.bench_tables import bench_json, conditions_text

    found = conditions([run.config for run in runs], load_text, remote.url if remote else None)
    rows: list[Any] = []
    if not as_json:
        click.echo(f"{conditions_text(found)}\n\n{table.head()}")
    for run in runs:
        with show_progress(run.config.name) as progress:
            measured = measure(run, progress)
        rows += measured
        if not as_json:
            click.echo("\n".join(table.body(row) for row in measured))
    if as_json:
        click.echo(json.dumps(bench_json(found, rows), indent=2))
    end_json()
    return rows
