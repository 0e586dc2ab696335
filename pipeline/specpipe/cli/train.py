"""`specpipe train`: Medusa heads, ReDrafters, EAGLE-3 drafters and draft models."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, plain, say, show_progress, suggest

if TYPE_CHECKING:
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
    """A command of the group: what it trains, by which function, and the key that uses it."""

    command: str
    promise: str  # the first line of its help
    make: str  # "module:function"
    key: str


PRODUCTS = (
    Product(
        "medusa",
        "Train Medusa heads on text or on the target's own answers.",
        "specpipe.train.medusa:train_medusa",
        "speculation.heads",
    ),
    Product(
        "redrafter",
        "Train a ReDrafter on text or on the target's own answers.",
        "specpipe.train.redrafter:train_redrafter",
        "speculation.drafter (in a hybrid: speculation.redrafter.drafter)",
    ),
    Product(
        "eagle3",
        "Train an EAGLE-3 drafter on text or on the target's own answers.",
        "specpipe.train.eagle3:train_eagle3",
        "speculation.draft.model (in a hybrid: speculation.eagle3.model)",
    ),
    Product(
        "draft",
        "Distil the target into a smaller copy with fewer layers.",
        "specpipe.train.draft_model:train_draft",
        "speculation.draft.model",
    ),
)


def _add(product: Product) -> None:
    """Add the command of a product to the group."""

    @train.command(product.command, help=f"{product.promise}\n{_HELP.format(product.command)}")
    @config_option
    @workspace_option
    @json_option
    def called(config_path: Path, workspace: Path, as_json: bool) -> None:
        module, name = product.make.split(":")
        make = getattr(importlib.import_module(module), name)  # which imports torch
        _train(make, product.key, config_path, workspace, as_json)


for _product in PRODUCTS:
    _add(_product)


def _train(
    make: "Callable[..., TrainResult]",
    key: str,
    config_path: Path,
    workspace: Path,
    as_json: bool,
) -> None:
    """Train, print what was gained, and name the key that uses the product."""
    run = load(config_path, workspace)
    with show_progress("") as progress:
        result = make(run.config, run.workspace, notify=say, progress=progress)
    text = (result.path / "report.json").read_text(encoding="utf-8")
    summary = {**plain(result), "report": json.loads(text)}
    click.echo(json.dumps(summary, indent=2) if as_json else str(result.path))
    for name, value in summary["report"]["after"].items():
        say(f"{name}: {summary['report']['before'][name]:.3f} -> {value:.3f} on the hold-out set")
    say(f"{'up to date' if result.fresh else 'written'}; report: {result.path / 'report.html'}")
    suggest(f"in the YAML file of a run, set {key} to {result.path}", as_json)
