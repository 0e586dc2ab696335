"""Make a run faster: `train tune recommend`."""

import json
import tempfile
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
from specpipe.cli.output import end_json, load, plain, run_flags, say, show_progress, suggest

if TYPE_CHECKING:
    from specpipe.train.produce import TrainResult


@click.group()
def train() -> None:
    """Train Medusa heads, a ReDrafter or a draft model for a target.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train medusa --config model_configs/smollm2-135m_train.yaml
    """


@train.command()
@config_option
@workspace_option
@json_option
def medusa(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train Medusa heads on text or on the target's own answers.

    An interrupted training resumes.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train medusa --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.medusa import train_medusa

    _train(train_medusa, "speculation.heads", config_path, workspace, as_json)


@train.command()
@config_option
@workspace_option
@json_option
def redrafter(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train a ReDrafter on text or on the target's own answers.

    An interrupted training resumes.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train redrafter --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.redrafter import train_redrafter

    key = "speculation.drafter (in a hybrid: speculation.redrafter.drafter)"
    _train(train_redrafter, key, config_path, workspace, as_json)


@train.command()
@config_option
@workspace_option
@json_option
def draft(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Distil the target into a smaller copy with fewer layers.

    An interrupted training resumes.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train draft --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.draft_model import train_draft

    _train(train_draft, "speculation.draft.model", config_path, workspace, as_json)


def _train(
    make: "Callable[..., TrainResult]",
    key: str,
    config_path: Path,
    workspace: Path,
    as_json: bool,
) -> None:
    """Train, print what was gained, and name the key that uses the product."""
    config, place = load(config_path, workspace)
    with show_progress("") as progress:
        result = make(config, place, notify=say, progress=progress)
    text = (result.path / "report.json").read_text()
    summary = {**plain(result), "report": json.loads(text)}
    click.echo(json.dumps(summary, indent=2) if as_json else str(result.path))
    for name, value in summary["report"]["after"].items():
        say(f"{name}: {summary['report']['before'][name]:.3f} -> {value:.3f} on the hold-out set")
    say(f"{'up to date' if result.fresh else 'written'}; report: {result.path / 'report.html'}")
    suggest(f"in the YAML file of a run, set {key} to {result.path}", as_json)


def _require_writable(
    context: click.Context, option: click.Parameter, out: Path | None
) -> Path | None:
    """Refuse a file that cannot be written, before the measurement starts."""
    if out is not None:
        place = next(folder for folder in out.absolute().parents if folder.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise click.BadParameter(
                f"{out} cannot be written: {place} is not a writable directory"
            ) from error
    return out


@click.command()
@config_option
@workspace_option
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    callback=_require_writable,
    help="Write the run with the chosen settings to this YAML file.",
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
    """Find the fastest settings of the run's method.

    Records the answers to the prompts of `validate:` once. Replays every setting against them with
    step times measured on this machine, then measures the best setting. For a run with engine.gpu,
    the CPU engine records the answers and the plan estimates the step times.

    \b
    Example:  specpipe tune --config model_configs/smollm2-135m_hybrid.yaml --out tuned.yaml
    """
    from specpipe.cli.present import tuning_json, tuning_text
    from specpipe.tune.settings import write_settings
    from specpipe.tune.stage import Prices, tune_run

    config, place = load(config_path, workspace)
    with show_progress("prompts") as progress:
        tuning = tune_run(config, place, Prices(costs, gpu), notify=say, progress=progress)
    click.echo(json.dumps(tuning_json(tuning), indent=2) if as_json else tuning_text(tuning))
    end_json()
    if out is not None:
        write_settings(config_path, out, tuning)
        say(f"wrote {out}")
        suggest(f"specpipe build {run_flags(out, workspace)}", as_json)


@click.command()
@config_option
@workspace_option
@costs_option
@gpu_option
@json_option
def recommend(
    config_path: Path, workspace: Path, costs: Path | None, gpu: str | None, as_json: bool
) -> None:
    """Compare every available method, each with its best settings.

    Prompt lookup and lookahead are always available. A draft model or heads are compared if the run
    names them.

    \b
    Example:  specpipe recommend --config model_configs/smollm2-135m_medusa.yaml
    """
    from specpipe.cli.present import prediction_json, predictions_text
    from specpipe.tune.stage import Prices, recommend_run

    config, place = load(config_path, workspace)
    with show_progress("prompts") as progress:
        found = recommend_run(config, place, Prices(costs, gpu), notify=say, progress=progress)
    as_text = json.dumps([prediction_json(p) for p in found], indent=2)
    click.echo(as_text if as_json else predictions_text(found))
