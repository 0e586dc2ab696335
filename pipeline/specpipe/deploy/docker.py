"""The image, and a compose file that runs it, with Prometheus and Grafana if asked for."""

import json
from typing import Any

from specpipe.deploy.compose import gpu_reservation, health_check, read_only_mount
from specpipe.deploy.deployment import (
    FRONT_GIB,
    GRPC,
    HTTP,
    METRICS,
    OPENAI,
    PACKAGE,
    SHARED_MEMORY_GIB,
    STOP_SECONDS,
    TEMPORARY_GIB,
    TLS,
    UID,
    Deployment,
)

Yaml = dict[str, Any]

_APT = """\
RUN apt-get update \\
    && apt-get install -y --no-install-recommends openssh-client openssh-server \\
    && rm -rf /var/lib/apt/lists/*"""
_READY = f"http://127.0.0.1:{HTTP}/v2/health/ready"
_PACKAGES = "/opt/requirements.txt"
# Triton's Python backend ignores PYTHONPATH, but not a .pth file.
_ADD_TO_PATH = (
    "import site, pathlib; "
    f"pathlib.Path(site.getsitepackages()[0], 'specpipe.pth').write_text('{PACKAGE}')"
)
_CHECK = "import specpipe.cli.serve, specpipe.serve.tritonserver, tritonclient.grpc"
_FRONT_CHECK = ", specpipe.openai.server"


def dockerfile(deployment: Deployment) -> str:
    """Return the Dockerfile: specpipe's source and what `base` lacks; no model is in the image.

    Every package is listed with its version, so pip resolves nothing; what runs is given as lists
    of arguments. The build fails if `base` lacks a package that the server needs.
    """
    pip = ["python3", "-m", "pip", "install", "--no-cache-dir", "--no-deps", "-r", _PACKAGES]
    lines = [
        f"FROM {deployment.base}",
        "USER root",
        *([_APT] if deployment.nodes > 1 else []),
        f"COPY requirements.txt {_PACKAGES}",
        "ENV PIP_BREAK_SYSTEM_PACKAGES=1",
        _run(pip),
        f"COPY specpipe {PACKAGE}/specpipe",
        _run(["python3", "-c", _ADD_TO_PATH]),
        _run(["python3", "-c", _CHECK + (_FRONT_CHECK if deployment.openai else "")]),
        f"USER {UID}:{UID}",
        "ENV HOME=/tmp",
        f"EXPOSE {' '.join(map(str, _ports(deployment)))}",
        f"CMD {json.dumps(deployment.command())}",
    ]
    return "\n".join(lines) + "\n"


def _ports(deployment: Deployment) -> tuple[int, ...]:
    return (HTTP, GRPC, METRICS, *((OPENAI,) if deployment.openai else ()))


def _run(arguments: list[str]) -> str:
    return f"RUN {json.dumps(arguments)}"


def compose(deployment: Deployment) -> Yaml:
    """Return the compose file; the repository is mounted from the workspace, read-only."""
    front = {"openai": _literal(_openai(deployment))} if deployment.openai else {}
    services = {"triton": _literal(_triton(deployment)), **front, **_MONITORING}
    return {"name": deployment.name, "services": services}


_MONITORING: Yaml = {
    "prometheus": {
        "image": "prom/prometheus:v3.5.0",
        "profiles": ["monitoring"],
        "volumes": ["./prometheus.yml:/etc/prometheus/prometheus.yml:ro"],
        "ports": ["127.0.0.1:9090:9090"],
    },
    "grafana": {
        "image": "grafana/grafana:12.1.0",
        "profiles": ["monitoring"],
        "environment": {"GF_AUTH_ANONYMOUS_ENABLED": "true"},
        "volumes": [
            "./grafana-provisioning.yml:/etc/grafana/provisioning/datasources/specpipe.yml:ro",
            "./grafana-dashboards.yml:/etc/grafana/provisioning/dashboards/specpipe.yml:ro",
            "../dashboard.json:/var/lib/grafana/dashboards/specpipe.json:ro",
        ],
        "ports": ["127.0.0.1:3000:3000"],
    },
}


def _literal(value: Any) -> Any:
    """Return a value that compose takes as it is: it expands $NAME in every text."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _triton(deployment: Deployment) -> Yaml:
    service: Yaml = {
        "image": deployment.image,
        "build": {"context": "."},
        "restart": "unless-stopped",
        "init": True,
        "ports": [f"127.0.0.1:{port}:{port}" for port in (HTTP, GRPC, METRICS)],
        "volumes": [
            read_only_mount(f"../../../triton_repo/{deployment.run}", deployment.repository)
        ],
        "read_only": True,
        "tmpfs": [f"/tmp:size={TEMPORARY_GIB}g,mode=1777"],
        "shm_size": f"{SHARED_MEMORY_GIB}gb",
        "mem_limit": f"{deployment.host_memory_gib}g",
        "pids_limit": 4096,
        "ulimits": {"memlock": -1, "stack": 67108864},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": health_check(_READY, deployment.startup_s),
    }
    for name, file in deployment.certificates.items():
        service["volumes"].append(read_only_mount(file, f"{TLS}/{name}"))
    if deployment.gpus:
        service["deploy"] = gpu_reservation(deployment.gpus)
    return service


def _openai(deployment: Deployment) -> Yaml:
    """Return the OpenAI API: the same image, without an engine, before the other container."""
    return {
        "image": deployment.image,
        "command": deployment.front_command("triton"),
        "depends_on": ["triton"],
        "restart": "unless-stopped",
        "init": True,
        "ports": [f"127.0.0.1:{OPENAI}:{OPENAI}"],
        "volumes": [
            read_only_mount(f"../../../triton_repo/{deployment.run}", deployment.repository)
        ],
        "read_only": True,
        "tmpfs": [f"/tmp:size={TEMPORARY_GIB}g,mode=1777"],
        "mem_limit": f"{FRONT_GIB}g",
        "pids_limit": 512,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _repository(deployment: Deployment) -> Yaml:
    return read_only_mount(f"../../../triton_repo/{deployment.run}", deployment.repository)


def prometheus(deployment: Deployment) -> Yaml:
    """Return the configuration of the compose file's Prometheus."""
    front = [f"openai:{OPENAI}"] if deployment.openai else []
    targets = [f"triton:{METRICS}", *front]
    jobs = [{"job_name": "specpipe", "static_configs": [{"targets": targets}]}]
    return {"global": {"scrape_interval": "5s"}, "scrape_configs": jobs}


def grafana_datasource() -> Yaml:
    """Return Grafana's data source in the compose file."""
    source = {
        "name": "Prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": "http://prometheus:9090",
        "isDefault": True,
    }
    return {"apiVersion": 1, "datasources": [source]}


def grafana_dashboards() -> Yaml:
    """Return where the compose file's Grafana finds its dashboards."""
    provider = {
        "name": "specpipe",
        "type": "file",
        "options": {"path": "/var/lib/grafana/dashboards"},
    }
    return {"apiVersion": 1, "providers": [provider]}
