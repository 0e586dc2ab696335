"""`specpipe compile`: the second stage, from checkpoints to engines."""

from pathlib import Path

import click

from specpipe.cli.options import config_option, container_option, json_option, workspace_option
from specpipe.cli.output import load
from specpipe.cli.run_stages import run_stages, suggest_command


@click.command(name="compile")
@config_option
@workspace_option
@container_option
@json_option
def compile_(config_path: Path, workspace: Path, in_container: bool, as_json: bool) -> None:
    """Compile the converted checkpoints into engines.

    \b
    Example:  specpipe compile --config model_configs/smollm2-135m_hybrid.yaml
    """
    run_stages(("compile",), load(config_path, workspace), as_json, in_container)
    suggest_command("package", config_path, workspace, as_json)
