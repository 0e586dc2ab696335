"""`specpipe inspect`: what a checkpoint or an engine is, and its defects."""

import json
from pathlib import Path

import click

from specpipe.cli.options import json_option
from specpipe.cli.output import counted, end_json, plain, show_progress


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="Also read every value, not only the headers.")
@json_option
def inspect(folder: Path, tensors: bool, as_json: bool) -> None:
    """Describe a checkpoint or engine and list its defects.

    DIR is a TensorRT-LLM checkpoint of any converter, a TensorRT-LLM engine or an OpenVINO engine.
    Exits with 5 if there are defects.

    \b
    Example:  specpipe inspect engines/smollm2-135m_hybrid/checkpoints/target
    """
    from specpipe.checkpoint.inspection.describe import inspection_text
    from specpipe.checkpoint.inspection.inspect import inspect_folder
    from specpipe.core.errors import GateFailed

    if tensors:
        with show_progress("bytes") as progress:
            found = inspect_folder(folder, progress)
    else:
        found = inspect_folder(folder)
    click.echo(json.dumps(plain(found), indent=2) if as_json else inspection_text(found))
    end_json()
    if found.defects:
        raise GateFailed(f"{folder}: {counted(len(found.defects), 'defect')}")
