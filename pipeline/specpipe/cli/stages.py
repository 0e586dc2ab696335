"""The stages of a build: `build convert compile package status plan`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, print_results, say, show_progress

if TYPE_CHECKING:
    from specpipe.deploy.write import Kind
    from specpipe.work import StageName


container_option = click.option(
    "--in-container",
    is_flag=True,
    help="Run the compiler in the release's container, by docker or podman (backend tensorrt).",
)


def _build(
    stages: "tuple[StageName, ...]",
    config_path: Path,
    workspace: Path,
    as_json: bool,
    in_container: bool = False,
) -> None:
    from specpipe.engine.tensorrt.container import find_runtime
    from specpipe.run import build

    config, place = load(config_path, workspace)
    runtime = find_runtime() if in_container else None
    with show_progress("") as progress:
        results = build(config, place, stages, runtime=runtime, notify=say, progress=progress)
    print_results(results, as_json)


@click.command()
@config_option
@workspace_option
@container_option
@json_option
def build(config_path: Path, workspace: Path, in_container: bool, as_json: bool) -> None:
    """Run every stage that is not fresh: convert, compile, package.

    \b
    Example:  specpipe build --config model_configs/smollm2-135m_hybrid.yaml
    """
    _build(("convert", "compile", "package"), config_path, workspace, as_json, in_container)


@click.command()
@config_option
@workspace_option
@json_option
def convert(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Convert the Hugging Face checkpoints to TensorRT-LLM's format.

    \b
    Example:  specpipe convert --config model_configs/smollm2-135m_hybrid.yaml
    """
    _build(("convert",), config_path, workspace, as_json)


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


@click.command()
@config_option
@workspace_option
@click.option(
    "--deploy",
    "kind",
    type=click.Choice(["docker", "kubernetes"]),
    help="Also write deploy/NAME: an image, and a compose file or manifests that serve it.",
)
@click.option("--image", metavar="REF", help="With --deploy: what the image is called, e.g. r/x:1.")
@click.option(
    "--gpus-per-node",
    default=8,
    show_default=True,
    type=click.IntRange(min=1),
    help="With --deploy: a server of more GPUs spans several nodes.",
)
@click.option(
    "--base-image",
    metavar="REF",
    help="With --deploy: build the image from this one, e.g. name@sha256:DIGEST.",
)
@click.option(
    "--monitoring-namespace",
    metavar="NAME",
    default="monitoring",
    show_default=True,
    help="With --deploy kubernetes: the namespace whose Prometheus may read the metrics.",
)
@json_option
def package(
    config_path: Path,
    workspace: Path,
    kind: "Kind | None",
    image: str | None,
    gpus_per_node: int,
    base_image: str | None,
    monitoring_namespace: str,
    as_json: bool,
) -> None:
    """Write the Triton model repository around the engines.

    \b
    Example:  specpipe package --config model_configs/smollm2-135m_hybrid.yaml
    """
    if (image or base_image) is not None and kind is None:
        raise click.UsageError(f"--{'' if image else 'base-'}image goes with --deploy")
    _build(("package",), config_path, workspace, as_json)
    if kind is not None:
        from specpipe.deploying import DeployOptions, deploy_run

        options = DeployOptions(image, gpus_per_node, base_image, monitoring_namespace)
        for file in deploy_run(*load(config_path, workspace), kind, options):
            say(f"wrote {file}")


@click.command()
@config_option
@workspace_option
@json_option
def status(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Say which artifacts are fresh, and why the rest is not.

    \b
    Example:  specpipe status --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.run import status as run_status

    print_results(run_status(*load(config_path, workspace)), as_json)


@click.command()
@config_option
@workspace_option
@json_option
def plan(config_path: Path, workspace: Path, as_json: bool) -> None:
    """Show what would be built, if it fits, and every reason why not.

    Reads no weights.

    \b
    Example:  specpipe plan --config model_configs/llama70b_draft7b.yaml
    """
    from specpipe.planning import make_plan
    from specpipe.present_plan import plan_json, plan_text

    made = make_plan(*load(config_path, workspace))
    click.echo(json.dumps(plan_json(made), indent=2) if as_json else plan_text(made))
    if made.rejections:
        sys.exit(3)
