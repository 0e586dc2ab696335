"""Shared by all commands: read the config, show progress, print results."""

import contextlib
import json
import shlex
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import JSON
from specpipe.core.errors import SpecpipeError

if TYPE_CHECKING:
    from specpipe.config.run_config import RunConfig
    from specpipe.run.run import Run
    from specpipe.run.stages import StageResult
    from specpipe.serve.client import Piece

LINE_SECONDS = 30.0  # between two lines of progress in a log


def load(config_path: Path, workspace: Path) -> "Run":
    """Return the run of a config, with its folders in the workspace."""
    from specpipe.core.artifacts import Workspace
    from specpipe.run.run import Run

    config = load_config(config_path)
    return Run(config, Workspace(workspace, config.name))


def load_config(config_path: Path) -> "RunConfig":
    """Read a config; print a warning for each former spelling in it."""
    from specpipe.config.run_config import read_config

    config = read_config(config_path)
    for remark in config.remarks:
        say(f"warning: {remark}")
    return config


def say(text: str) -> None:
    click.echo(text, err=True)


def suggest(step: str, as_json: bool) -> None:
    """Print the next step for users, unless a program reads the output."""
    if not as_json:
        say(f"next: {step}")


def run_flags(config_path: Path, workspace: Path) -> str:
    """Return the options that name a run, as a shell reads them."""
    place = "" if workspace == Path() else f" --workspace {shlex.quote(str(workspace))}"
    return f"--config {shlex.quote(str(config_path))}{place}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 defect`, `2 defects`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that draws a bar on stderr; a new total begins a new bar.

    Where stderr is not a terminal, the callback prints a line now and then.
    """
    if not sys.stderr.isatty():
        yield progress_lines(what or "progress")
        return
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


def progress_lines(
    what: str, now: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Return a callback that prints the progress on stderr, at most once in `LINE_SECONDS`."""
    printed = now()

    def update(done: int, total: int) -> None:
        nonlocal printed
        if now() - printed >= LINE_SECONDS:
            printed = now()
            say(f"{what}: {done} of {total}")

    return update


def print_results(results: "list[StageResult]", as_json: bool) -> None:
    from specpipe.cli.present import results_text

    click.echo(json.dumps(plain(results), indent=2) if as_json else results_text(results))
    end_json()


def harmless(text: str) -> str:
    """Return a model's text in a form that is safe on a terminal; unchanged elsewhere.

    Control characters move the cursor, rename the window, write to the clipboard or reverse the
    reading order. They appear as escapes: `\\x1b` instead of ESC.
    """
    return escape_controls(text) if sys.stdout.isatty() else text


def escape_controls(text: str) -> str:
    """Return `text` with an escape for every control character but newline and tab."""
    return "".join(_escaped(c) if _is_control(c) else c for c in text)


def echo_pieces(pieces: "Iterator[Piece]", *, quiet: bool) -> "Iterator[Piece]":
    """Yield the pieces of an answer, and print the text of each unless `quiet`."""
    with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
        for piece in pieces:
            if not quiet:
                click.echo(harmless(piece.text), nl=False)
            yield piece


_BIDIRECTIONAL = frozenset(
    "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) == "Cc" or character in _BIDIRECTIONAL


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def print_error(error: SpecpipeError, context: click.Context) -> None:
    """Print a sentence on stderr, and JSON on stdout if the command has not printed its own."""
    click.echo(f"error: {error}", err=True)
    if context.meta.get(JSON):
        what = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        click.echo(json.dumps({"error": what}))


def end_json() -> None:
    """Note that a command has printed its JSON: later errors appear on stderr only."""
    click.get_current_context().meta[JSON] = False


def plain(value: Any) -> Any:
    """Turn records and paths into values that JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
