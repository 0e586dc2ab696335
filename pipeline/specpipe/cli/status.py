"""`specpipe status`: which artifacts of a run are up to date."""

from pathlib import Path

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, print_results


@click.command()
@config_option
@workspace_option
@json_option
def status(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Show which artifacts are up to date, and why others are stale.

    \b
    Example:  specpipe status --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.run.stages import status as run_status

    print_results(run_status(load(config_path, workspace)), as_json)
