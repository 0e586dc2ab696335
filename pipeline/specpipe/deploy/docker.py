"""The image, and a compose file that runs it, with Prometheus and Grafana if asked for."""

from typing import Any

from specpipe.deploy.deployment import GRPC, HTTP, METRICS, PACKAGE, STOP_SECONDS, UID, Deployment

Yaml = dict[str, Any]

_SSH = "openssh-client openssh-server"


def dockerfile(deployment: Deployment) -> str:
    """Return the Dockerfile: specpipe's source and what `base` lacks; no model is in the image."""
    packages = [_SSH] if deployment.nodes > 1 else []
    lines = [
        f"FROM {deployment.base}",
        "USER root",
        *(
            f"RUN apt-get update && apt-get install -y --no-install-recommends {names} "
            "&& rm -rf /var/lib/apt/lists/*"
            for names in packages
        ),
        "COPY requirements.txt /tmp/requirements.txt",
        "RUN PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir "
        "-r /tmp/requirements.txt && rm /tmp/requirements.txt",
        f"COPY specpipe {PACKAGE}/specpipe",
        "# Triton's Python backend ignores PYTHONPATH, but not a .pth file.",
        'RUN python3 -c "import site, pathlib; '
        "pathlib.Path(site.getsitepackages()[0], 'specpipe.pth')"
        f".write_text('{PACKAGE}')\"",
        f"USER {UID}:{UID}",
        "ENV HOME=/tmp",
        f"EXPOSE {HTTP} {GRPC} {METRICS}",
        f"CMD {_exec_form(deployment.command())}",
    ]
    return "\n".join(lines) + "\n"


def _exec_form(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def compose(deployment: Deployment) -> Yaml:
    """Return the compose file; the repository is mounted from the workspace, read-only."""
    return {
        "name": deployment.name,
        "services": {
            "triton": _triton(deployment),
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
        },
    }


def _triton(deployment: Deployment) -> Yaml:
    service: Yaml = {
        "image": deployment.image,
        "build": {"context": "."},
        "restart": "unless-stopped",
        "init": True,
        "ports": [f"127.0.0.1:{port}:{port}" for port in (HTTP, GRPC, METRICS)],
        "volumes": [
            {
                "type": "bind",
                "source": f"../../../triton_repo/{deployment.run}",
                "target": deployment.repository,
                "read_only": True,
            }
        ],
        "read_only": True,
        "tmpfs": ["/tmp"],
        "shm_size": "2gb",
        "ulimits": {"memlock": -1, "stack": 67108864},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "stop_grace_period": f"{STOP_SECONDS}s",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _PROBE],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": f"{deployment.startup_s}s",
        },
    }
    if deployment.gpus:
        gpus = {"driver": "nvidia", "count": deployment.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [gpus]}}}
    return service


_PROBE = (
    f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{HTTP}/v2/health/ready', "
    "timeout=4)"
)


def prometheus() -> Yaml:
    """Return the configuration of the compose file's Prometheus."""
    jobs = [{"job_name": "specpipe", "static_configs": [{"targets": [f"triton:{METRICS}"]}]}]
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
