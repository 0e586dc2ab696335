"""`specpipe package`: the third stage, from engines to a model repository; and its deployment."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import config_option, json_option, workspace_option
from specpipe.cli.output import load, say, suggest
from specpipe.cli.run_stages import run_stages, suggest_command

if TYPE_CHECKING:
    from specpipe.deploy.deployment import AccessMode
    from specpipe.deploy.write import Platform


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
@click.option(
    "--monitoring-release",
    metavar="NAME",
    help="Label `release` of PodMonitor and alerts, by which kube-prometheus-stack selects them.",
)
@click.option(
    "--access-mode",
    type=click.Choice(["ReadWriteMany", "ReadWriteOnce"]),
    default="ReadWriteMany",
    show_default=True,
    help="Of the volume with the models. ReadWriteOnce allows one replica only.",
)
@click.option("--storage-class", metavar="NAME", help="Of the volume. Default: the cluster's.")
@json_option
def package(
    config_path: Path,
    workspace: Path,
    kind: "Platform | None",
    image: str | None,
    gpus_per_node: int,
    base_image: str | None,
    monitoring_namespace: str,
    monitoring_release: str | None,
    access_mode: "AccessMode",
    storage_class: str | None,
    as_json: bool,
) -> None:
    """Write the Triton model repository for the engines.

    \b
    Example:  specpipe package --config model_configs/smollm2-135m_hybrid.yaml
    """
    if (image or base_image) is not None and kind is None:
        raise click.UsageError(f"--{'' if image else 'base-'}image needs --deploy")
    run = load(config_path, workspace)
    run_stages(("package",), run, as_json)
    if kind is None:
        if run.config.serving.front == "triton":
            suggest_command("serve", config_path, workspace, as_json)
        else:
            suggest(f"start {run.workspace.repository}/serve.sh, or add --deploy", as_json)
        return
    from specpipe.deploy.stage import DeployOptions, deploy_run

    options = DeployOptions(
        image, gpus_per_node, base_image, monitoring_namespace, monitoring_release, access_mode,
        storage_class,
    )  # fmt: skip
    deployed = deploy_run(run, kind, options)
    files = deployed.files
    for file in files:
        say(f"wrote {file}")
    for warning in deployed.warnings:
        say(f"warning: {warning}")
    for file in files:
        if file.name == "README.md":
            suggest(f"follow {file}", as_json)
