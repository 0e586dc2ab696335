"""`specpipe tune`: the fastest settings of a run's method."""

import json
from pathlib import Path

import click

from specpipe.cli.options import (
    config_option,
    costs_option,
    gpu_option,
    json_option,
    require_writable,
    streams_option,
    workspace_option,
)
from specpipe.cli.output import end_json, load, run_flags, say, show_progress, suggest

PLAIN_IS_BEST = "plain decoding, since no setting is faster here"


@click.command()
@config_option
@workspace_option
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=require_writable,
    help="Write the run with the chosen settings to this YAML file, which may lie anywhere.",
)
@costs_option
@gpu_option
@streams_option
@json_option
def tune(
    config_path: Path,
    workspace: Path,
    out: Path | None,
    costs: Path | None,
    gpu: str | None,
    streams: int,
    as_json: bool,
) -> None:
    """Find the fastest settings of the run's method.

    Records the answers to the prompts of `validate:` once. Replays every setting against them with
    step times measured on this machine. Then decodes the three most promising settings and plain
    decoding in turn, and chooses the fastest. For a run with engine.gpu, the CPU engine records the
    answers and the plan estimates the step times.

    \b
    Example:  specpipe tune --config model_configs/smollm2-135m_hybrid.yaml --out tuned.yaml
    """
    from specpipe.cli.present_tuning import tuning_json, tuning_text
    from specpipe.tune.settings import write_settings
    from specpipe.tune.stage import Prices, tune_run

    run = load(config_path, workspace)
    with show_progress("prompts") as progress:
        tuning = tune_run(run, Prices(costs, gpu, streams), notify=say, progress=progress)
    click.echo(json.dumps(tuning_json(tuning), indent=2) if as_json else tuning_text(tuning))
    end_json()
    if out is not None:
        remarks = write_settings(run.config, out, tuning)
        say(f"wrote {out}" if tuning.best.method != "none" else f"wrote {out}: {PLAIN_IS_BEST}")
        for remark in remarks:
            say(f"note: {remark}")
        suggest(f"specpipe build {run_flags(out, workspace)}", as_json)
