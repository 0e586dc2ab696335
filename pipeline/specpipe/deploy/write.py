"""Writes a deployment as plain YAML; equal runs give equal bytes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

import specpipe
from specpipe.core.artifacts import Manifest, write_text
from specpipe.core.publishing import remove_leftovers, staged, write_publish
from specpipe.deploy import docker, http_readme, http_server, kubernetes
from specpipe.deploy.dashboard import dashboard
from specpipe.deploy.deployment import Deployment
from specpipe.deploy.http_server import HttpServer
from specpipe.deploy.readme import docker_readme, kubernetes_readme

Platform = Literal["docker", "kubernetes"]
KINDS: tuple[Platform, ...] = ("docker", "kubernetes")


def write_deployment(deployment: Deployment, kind: Platform, out: Path) -> list[Path]:
    """Write the image and, for `kind`, what runs it, as the artifact `out`; return the files.

    Manifests that an earlier call wrote there are written anew as well. The image's folder holds a
    copy of specpipe itself, which is not returned. Raises ConfigError, and changes nothing, if
    `out` holds files that are not ours.
    """
    files = docker_files(deployment)
    if kind == "kubernetes" or (out / "kubernetes").is_dir():
        files = {**files, **kubernetes_files(deployment)}
    return _write(files, Manifest("deployment", {"of": repr(deployment)}), out, package=True)


def write_http_deployment(server: HttpServer, kind: Platform, out: Path) -> list[Path]:
    """Write what runs a front without Triton, as `write_deployment` does; no image is built."""
    files = http_docker_files(server)
    if kind == "kubernetes" or (out / "kubernetes").is_dir():
        files = {**files, **http_kubernetes_files(server)}
    made = Manifest("deployment", {"of": repr(server.deployment), "front": server.front.name})
    return _write(files, made, out, package=False)


def _write(files: Mapping[str, str], made: Manifest, out: Path, *, package: bool) -> list[Path]:
    remove_leftovers(out)
    with staged(out, "deploy") as temporary:
        for name, text in files.items():
            write_text(temporary / name, text)
        if package:
            _copy_package(temporary / "docker/specpipe")
        write_publish(temporary, out, made)
    return [out / name for name in files]


def http_docker_files(server: HttpServer) -> dict[str, str]:
    """Return the texts of the compose file and what it mounts, by their names."""
    return {
        "docker/README.md": http_readme.docker_readme(server),
        **{f"docker/{name}": to_yaml(made) for name, made in _composes(server).items()},
        **{f"docker/config/{name}": text for name, text in server.files.items()},
    }


def _composes(server: HttpServer) -> Mapping[str, Mapping[str, Any]]:
    return http_server.node_composes(server) or {"compose.yaml": http_server.compose(server)}


def http_kubernetes_files(server: HttpServer) -> dict[str, str]:
    """Return the texts of the manifests, by their names."""
    objects = http_server.manifests(server)
    return {
        "kubernetes/README.md": http_readme.kubernetes_readme(server),
        **{f"kubernetes/{name}": to_yaml(made) for name, made in objects.items()},
    }


def docker_files(deployment: Deployment) -> dict[str, str]:
    """Return the texts of the image and the compose file, by their names."""
    return {
        "docker/README.md": docker_readme(deployment),
        "docker/Dockerfile": docker.dockerfile(deployment),
        "docker/requirements.txt": "\n".join(deployment.requirements) + "\n",
        "docker/.dockerignore": "**/__pycache__\n",
        "docker/compose.yaml": to_yaml(docker.compose(deployment)),
        "docker/prometheus.yml": to_yaml(docker.prometheus(deployment)),
        "docker/grafana-provisioning.yml": to_yaml(docker.grafana_datasource()),
        "docker/grafana-dashboards.yml": to_yaml(docker.grafana_dashboards()),
        "dashboard.json": json.dumps(dashboard(deployment), indent=1) + "\n",
    }


def kubernetes_files(deployment: Deployment) -> dict[str, str]:
    """Return the texts of the manifests, by their names."""
    objects = kubernetes.manifests(deployment)
    texts = {f"kubernetes/{name}": to_yaml(made) for name, made in objects.items()}
    return {
        "kubernetes/README.md": kubernetes_readme(deployment, kubernetes.loader_name(deployment)),
        **texts,
        "prometheus-adapter.yaml": to_yaml(kubernetes.adapter_values()),
    }


def to_yaml(value: Mapping[str, Any]) -> str:
    """Return a record as YAML in the order in which it was made, with long texts in blocks."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, width=1000)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and never an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _copy_package(target: Path) -> None:
    source = Path(specpipe.__file__).parent
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
