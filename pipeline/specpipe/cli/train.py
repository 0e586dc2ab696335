"""`specpipe train`: Medusa heads, ReDrafters, EAGLE-3 drafters and draft models."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, plain, say, show_progress, suggest

if TYPE_CHECKING:
    from specpipe.run.run import Run
    from specpipe.train.job import DrafterKind
    from specpipe.train.produce import TrainResult


@click.group()
def train() -> None:
    """Train Medusa heads, a drafter or a draft model for a target.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train medusa --config model_configs/smollm2-135m_train.yaml
    """


_HELP = """
An interrupted training resumes.

\b
Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
          specpipe train {} --config model_configs/smollm2-135m_train.yaml
"""


@dataclass(frozen=True)
class Product:
    """A command of the group: what it trains, in which module, and the key that uses it.

    The module has `train_COMMAND`, which trains, and `COMMAND_kind`, which describes the training.
    """

    command: str
    promise: str  # the first line of its help
    module: str
    key: str


PRODUCTS = (
    Product(
        "medusa",
        "Train Medusa heads on text or on the target's own answers.",
        "specpipe.train.medusa",
        "speculation.heads",
    ),
    Product(
        "redrafter",
        "Train a ReDrafter on text or on the target's own answers.",
        "specpipe.train.redrafter",
        "speculation.drafter (in a hybrid: speculation.redrafter.drafter)",
    ),
    Product(
        "eagle3",
        "Train an EAGLE-3 drafter on text or on the target's own answers.",
        "specpipe.train.eagle3",
        "speculation.draft.model (in a hybrid: speculation.eagle3.model)",
    ),
    Product(
        "draft",
        "Distil the target into a smaller copy with fewer layers.",
        "specpipe.train.draft_model",
        "speculation.draft.model",
    ),
)


def _add(product: Product) -> None:
    """Add the command of a product to the group."""

    @train.command(product.command, help=f"{product.promise}\n{_HELP.format(product.command)}")
    @config_option
    @workspace_option
    @click.option(
        "--dry-run",
        "only_forecast",
        is_flag=True,
        help="Print what the training needs: text, disk, memory, time. Exits with 3 if it does not "
        "fit.",
    )
    @click.option(
        "--gpu",
        metavar="NAME",
        help="With --dry-run: estimate for this GPU, e.g. H100-SXM, which need not be here.",
    )
    @json_option
    def called(
        config_path: Path, workspace: Path, only_forecast: bool, gpu: str | None, as_json: bool
    ) -> None:
        _call(product, config_path, workspace, only_forecast, gpu, as_json)


for _product in PRODUCTS:
    _add(_product)


def _call(
    product: Product,
    config_path: Path,
    workspace: Path,
    only_forecast: bool,
    gpu: str | None,
    as_json: bool,
) -> None:
    """Train, print what was gained, and name the key that uses the product; or only forecast."""
    if gpu is not None and not only_forecast:
        raise click.UsageError("--gpu needs --dry-run: it names a GPU to estimate for")
    run = load(config_path, workspace)
    module = importlib.import_module(product.module)  # which imports torch
    if only_forecast:
        _forecast(getattr(module, f"{product.command}_kind")(run.config), run, gpu, as_json)
        return
    make: Callable[..., TrainResult] = getattr(module, f"train_{product.command}")
    with show_progress("") as progress:
        result = make(run.config, run.workspace, notify=say, progress=progress, measure=True)
    text = (result.path / "report.json").read_text(encoding="utf-8")
    summary = {**plain(result), "report": json.loads(text)}
    click.echo(json.dumps(summary, indent=2) if as_json else str(result.path))
    for name, value in summary["report"]["after"].items():
        say(f"{name}: {summary['report']['before'][name]:.3f} -> {value:.3f} on the hold-out set")
    say(f"{'up to date' if result.fresh else 'written'}; report: {result.path / 'report.html'}")
    suggest(f"in the YAML file of a run, set {product.key} to {result.path}", as_json)


def _forecast(made: "DrafterKind", run: "Run", gpu: str | None, as_json: bool) -> None:
    """Print what the training would need; exit with 3 if it does not fit."""
    from specpipe.train.forecast.dry_run import dry_run
    from specpipe.train.forecast.present import forecast_json, lines
    from specpipe.train.produce import training_folder

    folder = training_folder(run.config, run.workspace)
    found = dry_run(made, run.config, folder, gpu=gpu, notify=say)
    if as_json:
        click.echo(json.dumps(forecast_json(found), indent=2))
    else:
        click.echo("\n".join(lines(found)))
    if found.rejections:
        sys.exit(3)
