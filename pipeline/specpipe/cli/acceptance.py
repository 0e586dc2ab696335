"""`specpipe acceptance`: the steps that need a GPU, and one report of them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import (
    configs_argument,
    container_option,
    json_option,
    workspace_option,
)
from specpipe.cli.output import counted, end_json, say
from specpipe.core.errors import StageFailed

if TYPE_CHECKING:
    from specpipe.acceptance.accept import AcceptanceResult

STEPS = ("doctor", "plan", "build", "serve", "validate", "bench")  # a test compares them


def _split_steps(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Return the named steps in their order; refuses unknown ones."""
    named = value.split(",")
    if unknown := [name for name in named if name not in STEPS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(STEPS)}")
    return tuple(step for step in STEPS if step in named)


@click.command()
@configs_argument
@workspace_option
@click.option(
    "--report",
    metavar="DIR",
    default="acceptance",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder of the report; DIR.tar.gz is its archive.",
)
@click.option(
    "--steps",
    metavar="STEP,...",
    default=",".join(STEPS),
    show_default=True,
    callback=_split_steps,
    help="Steps to run, separated by commas.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    default=7200,
    show_default=True,
    type=click.IntRange(min=1),
    help="Time limit of each step, in seconds.",
)
@container_option
@json_option
def acceptance(
    configs: tuple[Path, ...],
    workspace: Path,
    report: Path,
    steps: tuple[str, ...],
    timeout_s: int,
    in_container: bool,
    as_json: bool,
) -> None:
    """Run every step on a GPU machine and write a report.

    The steps of each config are doctor, plan, build, serve, validate and bench (a load of 1, 4 and
    16 clients). If plan, build or serve fails, the other steps of that config are skipped and
    reported as skipped. The next config still runs. Exits with 4 if a step failed.

    The report is a folder and a .tar.gz archive of it: start with summary.md. It has the output of
    every step, logs, plans, manifests and the output of nvidia-smi, but no weights and no engines.

    On a machine with docker, in a clone; `specpipe plan` prints the name of the IMAGE:

    \b
      docker run --rm -it --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \\
          -v "$PWD:$PWD" -v "$HOME/models:$HOME/models:ro" -w "$PWD" -e HOME=/tmp IMAGE \\
          sh -c 'pip install -e . && specpipe acceptance model_configs/llama8b_lookahead.yaml'

    \b
    Example:  specpipe acceptance model_configs/llama8b_lookahead.yaml
    """
    from specpipe.acceptance.accept import accept
    from specpipe.acceptance.report import summary_table
    from specpipe.acceptance.session import Session

    session = Session(report, workspace, timeout_s, in_container)
    done = accept(configs, session, steps, notify=say)
    as_text = (
        json.dumps(acceptance_json(done), indent=2) if as_json else summary_table(done.configs)
    )
    click.echo(as_text)
    end_json()
    if done.failed:
        raise StageFailed(
            f"acceptance: {counted(len(done.failed), 'step')} failed or skipped, first "
            f"{done.failed[0]}",
            hint=f"read {done.summary}",
        )


def acceptance_json(done: "AcceptanceResult") -> dict[str, Any]:
    """Return the results as plain values."""
    from specpipe.acceptance.report import results

    return {
        "summary": str(done.summary),
        "archive": str(done.archive),
        "configs": results(done.configs),
    }
