"""`specpipe build`: convert, compile and package."""

from pathlib import Path

import click

from specpipe.cli.options import config_option, container_option, json_option, workspace_option
from specpipe.cli.output import load
from specpipe.cli.run_stages import run_stages, suggest_command


@click.command()
@config_option
@workspace_option
@container_option
@json_option
def build(config_path: Path, workspace: Path, in_container: bool, as_json: bool) -> None:
    """Convert, compile and package; skip stages that are up to date.

    \b
    Example:  specpipe build --config model_configs/smollm2-135m_hybrid.yaml
    """
    run = load(config_path, workspace)
    run_stages(("convert", "compile", "package"), run, as_json, in_container)
    suggest_command("serve", config_path, workspace, as_json)
