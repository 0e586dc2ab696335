"""Making a run faster: `train tune recommend`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import (
    config_option,
    costs_option,
    gpu_option,
    json_option,
    workspace_option,
)
from specpipe.cli.output import end_json, load, plain, say, show_progress

if TYPE_CHECKING:
    from specpipe.train.produce import TrainResult


@click.group()
def train() -> None:
    """Train heads, a ReDrafter or a draft model for a target.

    \b
    Example:  specpipe train medusa --config model_configs/smollm2-135m_train.yaml
    """


@train.command()
@config_option
@workspace_option
@json_option
def medusa(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train Medusa heads on text or on the target's own answers.

    Resumes where it was killed.

    \b
    Example:  specpipe train medusa --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.make_heads import train_medusa

    _train(train_medusa, config_path, workspace, as_json)


@train.command()
@config_option
@workspace_option
@json_option
def redrafter(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train a ReDrafter on text or on the target's own answers.

    Resumes where it was killed.

    \b
    Example:  specpipe train redrafter --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.make_drafter import train_redrafter

    _train(train_redrafter, config_path, workspace, as_json)


@train.command()
@config_option
@workspace_option
@json_option
def draft(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Distil the target into a copy of itself with fewer layers.

    Resumes where it was killed.

    \b
    Example:  specpipe train draft --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.make_draft import train_draft

    _train(train_draft, config_path, workspace, as_json)


def _train(
    make: "Callable[..., TrainResult]", config_path: Path, workspace: Path, as_json: bool
) -> None:
    config, place = load(config_path, workspace)
    with show_progress("") as progress:
        result = make(config, place, notify=say, progress=progress)
    text = (result.path / "report.json").read_text()
    summary = {**plain(result), "report": json.loads(text)}
    click.echo(json.dumps(summary, indent=2) if as_json else str(result.path))
    for name, value in summary["report"]["after"].items():
        say(f"{name}: {summary['report']['before'][name]:.3f} -> {value:.3f} on the hold-out")
    say(f"{'fresh' if result.fresh else 'written'}; report: {result.path / 'report.html'}")


def _require_writable(
    context: click.Context, option: click.Parameter, out: Path | None
) -> Path | None:
    """Refuse a file that cannot be written in the end, before anything is measured for it."""
    if out is not None:
        place = next(folder for folder in out.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise click.BadParameter(f"{out} cannot be written: {place} is no folder to write to")
    return out


@click.command()
@config_option
@workspace_option
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_require_writable,
    help="Write the run's YAML with the chosen settings here; without it nothing is written.",
)
@costs_option
@gpu_option
@json_option
def tune(
    config_path: Path,
    workspace: Path,
    out: Path | None,
    costs: Path | None,
    gpu: str | None,
    as_json: bool,
) -> None:
    """Choose the method's settings for this machine and the prompts.

    Answers to the prompts of `validate:` are recorded once; every setting is then replayed against
    them and priced with the step costs measured here; the best one is run for real. A run for a GPU
    is recorded with the CPU engine and priced by the plan's estimate for the GPU.

    \b
    Example:  specpipe tune --config model_configs/smollm2-135m_hybrid.yaml --out tuned.yaml
    """
    from specpipe.present import tuning_json, tuning_text
    from specpipe.tune.settings import write_settings
    from specpipe.tuning import Prices, tune_run

    config, place = load(config_path, workspace)
    with show_progress("prompts") as progress:
        tuning = tune_run(config, place, Prices(costs, gpu), notify=say, progress=progress)
    click.echo(json.dumps(tuning_json(tuning), indent=2) if as_json else tuning_text(tuning))
    end_json()
    if out is not None:
        write_settings(config_path, out, tuning)
        say(f"wrote {out}")


@click.command()
@config_option
@workspace_option
@costs_option
@gpu_option
@json_option
def recommend(
    config_path: Path, workspace: Path, costs: Path | None, gpu: str | None, as_json: bool
) -> None:
    """Compare the methods that the run's models allow, at their best.

    Prompt lookup and lookahead need nothing; a draft or heads are tried if the run names them.

    \b
    Example:  specpipe recommend --config model_configs/smollm2-135m_medusa.yaml
    """
    from specpipe.present import prediction_json, predictions_text
    from specpipe.tuning import Prices, recommend_run

    config, place = load(config_path, workspace)
    with show_progress("prompts") as progress:
        found = recommend_run(config, place, Prices(costs, gpu), notify=say, progress=progress)
    as_text = json.dumps([prediction_json(p) for p in found], indent=2)
    click.echo(as_text if as_json else predictions_text(found))
