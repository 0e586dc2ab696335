"""`specpipe plan`: the dry run of a build."""

import json
import sys
from pathlib import Path

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load


@click.command()
@config_option
@workspace_option
@json_option
def plan(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Dry run: show engines, memory and every reason for a refusal.

    Reads no weights. Exits with 3 if the run is refused.

    \b
    Example:  specpipe plan --config model_configs/llama70b_draft7b.yaml
    """
    from specpipe.report.plan_json import plan_json
    from specpipe.report.present_plan import plan_text

    made = load(config_path, workspace).plan
    click.echo(json.dumps(plan_json(made), indent=2) if as_json else plan_text(made))
    if made.rejections:
        sys.exit(3)
