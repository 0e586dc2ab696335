"""Run stages of a build and print their results: shared by the commands of the stages."""

from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.cli.output import print_results, run_flags, say, show_progress, suggest

if TYPE_CHECKING:
    from specpipe.run.jobs import StageName
    from specpipe.run.run import Run


def run_stages(
    stages: "tuple[StageName, ...]", run: "Run", as_json: bool, in_container: bool = False
) -> None:
    """Run the stages of a run that are not up to date; print a line for each artifact."""
    from specpipe.engine.tensorrt.container import find_runtime
    from specpipe.run.stages import build

    runtime = find_runtime() if in_container else None
    with show_progress("") as progress:
        results = build(run, stages, runtime=runtime, notify=say, progress=progress)
    print_results(results, as_json)


def suggest_command(command: str, config_path: Path, workspace: Path, as_json: bool) -> None:
    """Print the command to run next for the same run."""
    suggest(f"specpipe {command} {run_flags(config_path, workspace)}", as_json)
