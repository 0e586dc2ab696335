"""`specpipe recommend`: the fastest method for a run."""

import json
from pathlib import Path

import click

from specpipe.cli.options import (
    config_option,
    costs_option,
    gpu_option,
    json_option,
    streams_option,
    workspace_option,
)
from specpipe.cli.output import load, say, show_progress


@click.command()
@config_option
@workspace_option
@costs_option
@gpu_option
@streams_option
@json_option
def recommend(
    config_path: Path,
    workspace: Path,
    costs: Path | None,
    gpu: str | None,
    streams: int,
    as_json: bool,
) -> None:
    """Compare every available method, each with its best settings.

    Prompt lookup and lookahead are always available. A draft model, heads or a drafter are compared
    if the run names them. On this machine, the methods are then decoded in turn.

    \b
    Example:  specpipe recommend --config model_configs/smollm2-135m_medusa.yaml
    """
    from specpipe.cli.present_tuning import recommendation_json, recommendation_text
    from specpipe.tune.stage import Prices, recommend_run

    run = load(config_path, workspace)
    with show_progress("prompts") as progress:
        found = recommend_run(run, Prices(costs, gpu, streams), notify=say, progress=progress)
    as_text = json.dumps(recommendation_json(found), indent=2)
    click.echo(as_text if as_json else recommendation_text(found))
