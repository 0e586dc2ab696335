"""What every command does the same way: read the config, show progress, print results."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from specpipe.artifacts import Workspace
    from specpipe.config import RunConfig
    from specpipe.run import StageResult


def load(config_path: Path, workspace: Path) -> "tuple[RunConfig, Workspace]":
    from specpipe.artifacts import Workspace
    from specpipe.config import read_config

    config = read_config(config_path)
    return config, Workspace(workspace, config.name)


def say(text: str) -> None:
    click.echo(text, err=True)


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws a bar on stderr; a new total begins a new bar."""
    with contextlib.ExitStack() as stack:
        bars: dict[int, Any] = {}

        def update(done: int, total: int) -> None:
            if total not in bars or done <= bars[total].pos:
                stack.close()
                bars[total] = stack.enter_context(
                    click.progressbar(
                        length=total, file=sys.stderr, label=what, show_eta=True, width=30
                    )
                )
            bars[total].update(done - bars[total].pos)

        yield update


def print_results(results: "list[StageResult]", as_json: bool) -> None:
    from specpipe.present import results_text

    click.echo(json.dumps(plain(results), indent=2) if as_json else results_text(results))


def plain(value: Any) -> Any:
    """Turn records and paths into what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
