"""`specpipe convert`: the first stage, from Hugging Face checkpoints to TensorRT-LLM ones."""

from pathlib import Path

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load
from specpipe.cli.run_stages import run_stages, suggest_command


@click.command()
@config_option
@workspace_option
@json_option
def convert(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Convert Hugging Face checkpoints to TensorRT-LLM checkpoints.

    \b
    Example:  specpipe convert --config model_configs/smollm2-135m_hybrid.yaml
    """
    run_stages(("convert",), load(config_path, workspace), as_json)
    suggest_command("compile", config_path, workspace, as_json)
