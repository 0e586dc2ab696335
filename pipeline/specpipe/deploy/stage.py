"""`specpipe package --deploy`: the facts of a packaged run, and files that serve it elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from specpipe import __version__
from specpipe.config.files import find_tls
from specpipe.config.run_config import RunConfig
from specpipe.core.artifacts import Workspace, read_artifact
from specpipe.core.errors import Unsupported
from specpipe.deploy.deployment import (
    CERTIFICATE,
    CLIENT_CA,
    KEY,
    REPOSITORY,
    AccessMode,
    Deployment,
    require_even_nodes,
    require_pinned,
    unique_name,
)
from specpipe.deploy.http_server import HttpServer
from specpipe.deploy.image import cpu_image, requirements
from specpipe.deploy.write import Platform, write_deployment, write_http_deployment
from specpipe.engine.fronts.front import HttpFront
from specpipe.engine.fronts.table import FRONTS
from specpipe.plan.plan import Plan
from specpipe.repository.description import read_endpoint
from specpipe.repository.placement import Placement, read_placement
from specpipe.run.run import Run
from specpipe.run.stages import require_repository

_GIB = 2**30
_UNKNOWN_WEIGHTS_GIB = 500  # room in the volume for a model whose size the plan does not know


@dataclass(frozen=True)
class DeployOptions:
    """What the run's config does not know: the cluster and its registry."""

    image: str | None = None  # None: a local name
    gpus_per_node: int = 8
    base_image: str | None = None  # None: the release's container, or a Python for CPUs
    monitoring_namespace: str = "monitoring"
    monitoring_release: str | None = None  # label `release` of what Prometheus Operator selects
    access_mode: AccessMode = "ReadWriteMany"
    storage_class: str | None = None


@dataclass(frozen=True)
class Deployed:
    """The files of a deployment, and what keeps it from running as they are."""

    files: list[Path]
    warnings: tuple[str, ...] = ()


def deploy_run(run: Run, kind: Platform, options: DeployOptions) -> Deployed:
    """Write what serves the packaged repository of a run with docker or Kubernetes.

    Raises ConfigError if the repository is missing or older than the config, Unsupported if its
    engines cannot be spread as the cluster wants.
    """
    require_repository(run)
    if (front := FRONTS.get(run.config.serving.front)) is not None:
        server = describe_server(run.plan, front, options)
        return Deployed(write_http_deployment(server, kind, run.workspace.deployment))
    deployment = describe(run.plan, run.workspace, options)
    files = write_deployment(deployment, kind, run.workspace.deployment)
    return Deployed(files, tuple(_warnings(deployment, kind, options)))


def _warnings(deployment: Deployment, kind: Platform, options: DeployOptions) -> Iterator[str]:
    if kind != "kubernetes":
        return
    if options.image is None:
        yield (
            f"no registry has the image {deployment.image}: choose a name in a registry of yours, "
            "package again with --image NAME:TAG, build docker/ and push it under that name"
        )
    if deployment.access_mode == "ReadWriteOnce":
        yield (
            "the volume is ReadWriteOnce, so one replica serves; several need a storage class with "
            "ReadWriteMany"
        )
    if not deployment.has_meters:
        yield (
            "upstream's llmapi model does not export the metric that the autoscaler watches, so "
            "there is no autoscaler"
        )


def describe(plan: Plan, workspace: Workspace, options: DeployOptions) -> Deployment:
    """Collect what the files of a deployment need of a run whose repository is there."""
    config, placement = plan.config, read_placement(workspace.repository)
    if config.engine.traits.whole_repository and config.serving.front == "triton":
        raise Unsupported(
            f"deployments of Triton's {config.engine.backend} backend are not written",
            hint=f"mount {workspace.repository} in NVIDIA's container that has the backend, or use "
            "another serving.front",
        )
    endpoint = read_endpoint(workspace.repository)
    engine = read_artifact(workspace.engine("target"))
    gpu = engine.manifest.facts.get("gpu") if engine else None
    on_gpus = config.engine.gpu is not None
    ranks = plan.requests["target"].engine.parallel.world_size
    repository = sum(f.stat().st_size for f in workspace.repository.rglob("*") if f.is_file())
    in_memory = plan.memory.total if plan.memory and not on_gpus else repository
    deployment = Deployment(
        run=config.name,
        image=_image(config, options),
        base=_base(plan, options),
        gpus=placement.gpus if placement else ranks * on_gpus,
        gpus_per_node=options.gpus_per_node,
        gpu_product=str(gpu) if gpu else None,
        host_memory_gib=ceil(in_memory / _GIB * 1.25) + (16 if on_gpus else 1),
        repository_gib=ceil(repository / _GIB),
        sequences=config.engine.max_batch_size,
        repository=_seen_at(config, workspace) if on_gpus else REPOSITORY,
        requirements=requirements(gpu=on_gpus, openai=config.serving.openai),
        texts=tuple(sorted(model.name for model in endpoint.texts)),
        monitoring=options.monitoring_namespace,
        monitoring_release=options.monitoring_release,
        access_mode=options.access_mode,
        storage_class=options.storage_class,
        speculates=config.speculation.method != "none",
        has_meters=not config.engine.traits.serves_sources,
        certificates=_certificates(config),
        openai=config.serving.openai,
        tokenizer=endpoint.tokenizer,
    )
    if deployment.openai and deployment.certificates:
        raise Unsupported(
            "serving.openai with serving.tls: the front's container would need the authority that "
            "signed the certificate",
            hint="remove one of them, or start `specpipe openai --tls-ca FILE` yourself",
        )
    if placement and deployment.nodes > 1:
        _require_mpi(deployment, placement)
    require_even_nodes(deployment)
    return deployment


def describe_server(plan: Plan, front: HttpFront, options: DeployOptions) -> HttpServer:
    """Collect what the files of a front without Triton need.

    Raises Unsupported if the front cannot spread its ranks as the cluster wants.
    """
    config, request = plan.config, plan.requests["target"]
    image = options.image or options.base_image
    weights = sum(f.weights for f in plan.memory.footprints.values()) if plan.memory else 0
    gpus = request.engine.parallel.world_size
    room = ceil(weights * gpus / _GIB) or _UNKNOWN_WEIGHTS_GIB
    deployment = Deployment(
        run=config.name,
        image=require_pinned(image, "--image") if image else plan.versions["container"],
        base=plan.versions["container"],
        gpus=gpus,
        gpus_per_node=options.gpus_per_node,
        gpu_product=None,
        host_memory_gib=room + 16,
        repository_gib=room,
        sequences=config.engine.max_batch_size,
        repository=REPOSITORY,
        requirements=(),
        access_mode=options.access_mode,
        storage_class=options.storage_class,
        speculates=config.speculation.method != "none",
        has_meters=False,
    )
    require_even_nodes(deployment)
    if deployment.nodes > 1 and not front.several_nodes:
        raise Unsupported(
            f"{gpus} GPUs span {deployment.nodes} nodes of {options.gpus_per_node}, and serving."
            f"front: {front.name} starts its ranks on one node",
            hint="set serving.front: dynamo, raise --gpus-per-node, or lower engine.tp_size",
        )
    return HttpServer(front, request, deployment)


def _require_mpi(deployment: Deployment, placement: Placement) -> None:
    """Raise Unsupported if the server starts its ranks by itself, which it does on one node."""
    span = f"{deployment.gpus} GPUs span {deployment.nodes} nodes of {deployment.gpus_per_node}"
    if placement.orchestrator:
        raise Unsupported(
            f"{span}, and TensorRT-LLM serves several engines from one node only",
            hint="raise --gpus-per-node, lower engine.tp_size, or use a method without a draft",
        )
    if placement.world_size == 1:
        raise Unsupported(
            f"{span}, and Triton's llmapi model starts its ranks on its own node",
            hint="raise --gpus-per-node, or lower engine.tp_size and engine.pp_size",
        )


def _image(config: RunConfig, options: DeployOptions) -> str:
    if options.image is not None:
        return require_pinned(options.image, "--image")
    return f"{unique_name(config.name)}:{__version__}"


def _base(plan: Plan, options: DeployOptions) -> str:
    if options.base_image is not None:
        return require_pinned(options.base_image, "--base-image")
    return plan.versions.get("container") or cpu_image()


def _certificates(config: RunConfig) -> dict[str, str]:
    files = find_tls(config) or ()
    names = (CERTIFICATE, KEY, CLIENT_CA)
    return {name: str(file) for name, file in zip(names, files, strict=False) if file}


def _seen_at(config: RunConfig, workspace: Workspace) -> str:
    return config.serving.repository_path or str(workspace.repository.resolve())
