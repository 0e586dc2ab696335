"""The stages of a build: `build convert compile package status plan`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, print_results, run_flags, say, show_progress, suggest

if TYPE_CHECKING:
    from specpipe.deploy.write import Platform
    from specpipe.run.jobs import StageName


container_option = click.option(
    "--in-container",
    is_flag=True,
    help="Run trtllm-build in NVIDIA's container, with docker or podman (backend tensorrt).",
)


def _build(
    stages: "tuple[StageName, ...]",
    config_path: Path,
    workspace: Path,
    as_json: bool,
    in_container: bool = False,
) -> None:
    from specpipe.engine.tensorrt.container import find_runtime
    from specpipe.run.stages import build

    config, place = load(config_path, workspace)
    runtime = find_runtime() if in_container else None
    with show_progress("") as progress:
        results = build(config, place, stages, runtime=runtime, notify=say, progress=progress)
    print_results(results, as_json)


def _next(command: str, config_path: Path, workspace: Path, as_json: bool) -> None:
    suggest(f"specpipe {command} {run_flags(config_path, workspace)}", as_json)


@click.command()
@config_option
@workspace_option
@container_option
@json_option
def build(config_path: Path, workspace: Path, in_container: bool, as_json: bool) -> None:
    """Convert, compile and package; skip stages that are up to date.

    \b
    Example:  specpipe build --config model_configs/smollm2-135m_hybrid.yaml
    """
    _build(("convert", "compile", "package"), config_path, workspace, as_json, in_container)
    _next("serve", config_path, workspace, as_json)


@click.command()
@config_option
@workspace_option
@json_option
def convert(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Convert Hugging Face checkpoints to TensorRT-LLM checkpoints.

    \b
    Example:  specpipe convert --config model_configs/smollm2-135m_hybrid.yaml
    """
    _build(("convert",), config_path, workspace, as_json)
    _next("compile", config_path, workspace, as_json)


@click.command(name="compile")
@config_option
@workspace_option
@container_option
@json_option
def compile_(config_path: Path, workspace: Path, in_container: bool, as_json: bool) -> None:
    """Compile the converted checkpoints into engines.

    \b
    Example:  specpipe compile --config model_configs/smollm2-135m_hybrid.yaml
    """
    _build(("compile",), config_path, workspace, as_json, in_container)
    _next("package", config_path, workspace, as_json)


@click.command()
@config_option
@workspace_option
@click.option(
    "--deploy",
    "kind",
    type=click.Choice(["docker", "kubernetes"]),
    help="Also write deploy/NAME: a Dockerfile, and a compose file or Kubernetes manifests.",
)
@click.option(
    "--image", metavar="REF", help="Name of the image, e.g. registry.example/x:1. Needs --deploy."
)
@click.option(
    "--gpus-per-node",
    metavar="N",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="GPUs per node. An engine with more GPUs spans several nodes. Needs --deploy.",
)
@click.option(
    "--base-image",
    metavar="REF",
    help="Base image, e.g. name@sha256:DIGEST. Needs --deploy.",
)
@click.option(
    "--monitoring-namespace",
    metavar="NAME",
    default="monitoring",
    show_default=True,
    help="Namespace whose Prometheus may read the metrics. Needs --deploy kubernetes.",
)
@json_option
def package(
    config_path: Path,
    workspace: Path,
    kind: "Platform | None",
    image: str | None,
    gpus_per_node: int,
    base_image: str | None,
    monitoring_namespace: str,
    as_json: bool,
) -> None:
    """Write the Triton model repository for the engines.

    \b
    Example:  specpipe package --config model_configs/smollm2-135m_hybrid.yaml
    """
    if (image or base_image) is not None and kind is None:
        raise click.UsageError(f"--{'' if image else 'base-'}image needs --deploy")
    _build(("package",), config_path, workspace, as_json)
    if kind is None:
        _next("serve", config_path, workspace, as_json)
        return
    from specpipe.deploy.stage import DeployOptions, deploy_run

    options = DeployOptions(image, gpus_per_node, base_image, monitoring_namespace)
    files = deploy_run(*load(config_path, workspace), kind, options)
    for file in files:
        say(f"wrote {file}")
    for file in files:
        if file.name == "README.md":
            suggest(f"follow {file}", as_json)


@click.command()
@config_option
@workspace_option
@json_option
def status(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Show which artifacts are up to date, and why others are stale.

    \b
    Example:  specpipe status --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.run.stages import status as run_status

    print_results(run_status(*load(config_path, workspace)), as_json)


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
    from specpipe.plan.make_plan import make_plan
    from specpipe.report.present_plan import plan_json, plan_text

    made = make_plan(*load(config_path, workspace))
    click.echo(json.dumps(plan_json(made), indent=2) if as_json else plan_text(made))
    if made.rejections:
        sys.exit(3)
