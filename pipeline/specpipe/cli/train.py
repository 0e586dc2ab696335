"""`specpipe train`: Medusa heads, ReDrafters, EAGLE-3 drafters and draft models."""

import json
from collections.abc import Callable
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
def eagle3(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Train an EAGLE-3 drafter on text or on the target's own answers.

    An interrupted training resumes.

    \b
    Example:  scripts/training-prompts --out engines/smollm2-135m_train/prompts.jsonl
              specpipe train eagle3 --config model_configs/smollm2-135m_train.yaml
    """
    from specpipe.train.eagle3 import train_eagle3

    key = "speculation.draft.model (in a hybrid: speculation.eagle3.model)"
    _train(train_eagle3, key, config_path, workspace, as_json)


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
