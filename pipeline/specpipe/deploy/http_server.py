"""Deployments of fronts without Triton: a compose file and manifests around NVIDIA's image.

No image is built. The server downloads the model into a volume, unless the model is a folder, which
is mounted. That the images run as another user than root, and with a root file system that cannot
be written to, was not tried; so neither is set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.deploy.compose import gpu_reservation, health_check, read_only_mount
from specpipe.deploy.deployment import Deployment
from specpipe.deploy.pods import INSTANCE, labels
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import (
    CONFIG_FOLDER,
    HEALTH,
    NODE_VARIABLES,
    PORT,
    SCRIPT,
    Cluster,
    HttpFront,
)
from specpipe.engine.fronts.vllm_serve import LAUNCH

Yaml = dict[str, Any]
CACHE = "/model-cache"  # of Hugging Face's downloads
SHARED_MEMORY_GIB = 8  # the ranks of a server exchange data through it
_SECRET = "HF_TOKEN"
_ETCD, _NATS = "quay.io/coreos/etcd:v3.5.21", "nats:2.11.4"
_DISCOVERY = {"ETCD_ENDPOINTS": "http://etcd:2379", "NATS_SERVER": "nats://nats:4222"}


@dataclass(frozen=True)
class HttpServer:
    """A front, the request that it serves, and the deployment around it."""

    front: HttpFront
    request: BuildRequest
    deployment: Deployment

    @property
    def folders(self) -> list[str]:
        """Models that are folders here, which the containers must see at the same paths."""
        return sorted(s for s in self.request.sources.values() if Path(s).is_absolute())

    @property
    def files(self) -> dict[str, str]:
        """What the server reads."""
        found = self.front.files(self.request)
        return {name: text for name, text in found.items() if name not in (SCRIPT, LAUNCH)}

    @property
    def programs(self) -> Mapping[str, Sequence[str]]:
        """The programs of a server, which read their files in `CONFIG_FOLDER`."""
        return self.front.commands(self.request, CONFIG_FOLDER)

    @property
    def has_own_objects(self) -> bool:
        """Whether objects of the front run it on Kubernetes, not a plain deployment."""
        return bool(self.front.objects(self.request, _cluster(self)))

    @property
    def node_programs(self) -> Mapping[str, Sequence[str]]:
        """The programs of several nodes that compose starts; empty if there is one node."""
        return self.front.node_commands(self.request) if self.deployment.nodes > 1 else {}

    @property
    def weights_gib(self) -> int:
        """Room for the weights; `repository_gib` is theirs here."""
        return max(1, self.deployment.repository_gib * 5 // 4)


def environment() -> dict[str, str]:
    """Return the variables of every container."""
    return {"HF_HOME": CACHE, "HOME": "/tmp"}


def compose(server: HttpServer) -> Yaml:
    """Return the compose file; programs of several find each other through etcd and NATS."""
    programs = list(server.programs.items())
    services: Yaml = {}
    for number, (name, argv) in enumerate(programs):
        answers, computes = number == 0, number == len(programs) - 1
        services[name] = _service(server, argv, answers=answers, computes=computes)
    if len(programs) > 1:
        services |= _discovery()
        for name, _ in programs:
            services[name]["environment"] |= _DISCOVERY
            services[name]["depends_on"] = ["etcd", "nats"]
    return {"name": server.deployment.name, "services": services, "volumes": {"model-cache": {}}}


def node_composes(server: HttpServer) -> dict[str, Yaml]:
    """Return a compose file for the first of several nodes and one for each of the others.

    Compose starts no other host's containers. The nodes share the network of their hosts; the shell
    that starts compose has the variables of `NODE_VARIABLES` and the address of its node.
    """
    found = {}
    for number, (name, argv) in enumerate(server.node_programs.items()):
        service = _service(server, argv, answers=number == 0, computes=True)
        # Words of the command that are variables are compose's own, not of the container.
        service["command"] = [_unescaped(word) for word in service["command"]]
        service.pop("ports", None)
        service["network_mode"] = "host"
        service["environment"]["VLLM_HOST_IP"] = "${NODE_ADDRESS:?}"
        (devices,) = service["deploy"]["resources"]["reservations"]["devices"]
        devices["count"] = server.deployment.gpus_a_node
        composed = {"name": server.deployment.name, "services": {name: service}}
        found[f"compose.{name}.yaml"] = {**composed, "volumes": {"model-cache": {}}}
    return found


def _unescaped(word: str) -> str:
    variables = {f"$${{{name}:?}}" for name in NODE_VARIABLES}
    return word.removeprefix("$") if word in variables else word


def _service(server: HttpServer, argv: Sequence[str], *, answers: bool, computes: bool) -> Yaml:
    deployment = server.deployment
    service: Yaml = {
        "image": deployment.image,
        "entrypoint": [],
        "command": [word.replace("$", "$$") for word in argv],
        "restart": "unless-stopped",
        "init": True,
        # The value of the shell that starts compose; nothing if there is none.
        "environment": {**environment(), _SECRET: "${HF_TOKEN:-}"},
        "volumes": [
            *([read_only_mount("./config", CONFIG_FOLDER)] if server.files else []),
            {"type": "volume", "source": "model-cache", "target": CACHE},
            *(read_only_mount(folder, folder) for folder in server.folders),
        ],
        "shm_size": f"{SHARED_MEMORY_GIB}gb",
        "ulimits": {"memlock": -1, "stack": 67108864},
    }
    if answers:
        service["ports"] = [f"127.0.0.1:{PORT}:{PORT}"]
        health = f"http://127.0.0.1:{PORT}{HEALTH}"
        service["healthcheck"] = health_check(health, deployment.startup_s)
    if computes:
        service["deploy"] = gpu_reservation(deployment.gpus)
    return service


def _discovery() -> Yaml:
    return {
        "etcd": {
            "image": _ETCD,
            "environment": {"ALLOW_NONE_AUTHENTICATION": "yes"},
            "command": [
                "etcd", "--listen-client-urls", "http://0.0.0.0:2379",
                "--advertise-client-urls", "http://etcd:2379",
            ],
        },
        "nats": {"image": _NATS, "command": ["-js"]},
    }  # fmt: skip


def manifests(server: HttpServer) -> dict[str, Yaml]:
    """Return the Kubernetes objects by the names of their files, and a kustomization."""
    cluster = _cluster(server)
    own = dict(server.front.objects(server.request, cluster))
    objects: dict[str, Yaml] = {
        **({"config.yaml": _config(server)} if server.files else {}),
        "volume.yaml": _volume(server),
        **(own or {"workload.yaml": _workload(server, cluster), "service.yaml": _entry(server)}),
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(objects),
    }
    return {**objects, "kustomization.yaml": kustomization}


def _cluster(server: HttpServer) -> Cluster:
    deployment, name = server.deployment, server.deployment.name
    claim = {"claimName": f"{name}-models"}
    config: list[Yaml] = [{"name": "config", "configMap": {"name": f"{name}-config"}}]
    config = config if server.files else []
    mounts: list[Yaml] = [
        *({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True} for _ in config),
        {"name": "models", "mountPath": CACHE},
        *({"name": "models", "mountPath": folder, "subPath": folder.strip("/"), "readOnly": True}
          for folder in server.folders),
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]  # fmt: skip
    memory = {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GIB}Gi"}
    return Cluster(
        name=name,
        image=deployment.image,
        nodes=deployment.nodes,
        gpus_a_node=deployment.gpus_a_node,
        labels=labels(deployment),
        environment=[{"name": k, "value": v} for k, v in environment().items()],
        mounts=mounts,
        volumes=[
            *config,
            {"name": "models", "persistentVolumeClaim": claim},
            {"name": "shared-memory", "emptyDir": memory},
        ],
        secrets=[{"secretRef": {"name": f"{name}-token", "optional": True}}],
    )


def _object(version: str, kind: str, deployment: Deployment, suffix: str = "") -> Yaml:
    metadata = {"name": f"{deployment.name}{suffix}", "labels": labels(deployment)}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}


def _config(server: HttpServer) -> Yaml:
    return {**_object("v1", "ConfigMap", server.deployment, "-config"), "data": server.files}


def _volume(server: HttpServer) -> Yaml:
    deployment = server.deployment
    spec: Yaml = {
        "accessModes": [deployment.access_mode],
        "resources": {"requests": {"storage": f"{server.weights_gib}Gi"}},
    }
    if deployment.storage_class is not None:
        spec["storageClassName"] = deployment.storage_class
    return {**_object("v1", "PersistentVolumeClaim", deployment, "-models"), "spec": spec}


def _workload(server: HttpServer, cluster: Cluster) -> Yaml:
    deployment = server.deployment
    pod = {"metadata": {"labels": labels(deployment)}, "spec": _pod(server, cluster)}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels(deployment)},
        "strategy": {"type": "Recreate"},  # GPUs are rarely free for a second copy
        "progressDeadlineSeconds": deployment.startup_s + 300,
        "template": pod,
    }
    return {**_object("apps/v1", "Deployment", deployment), "spec": spec}


def _pod(server: HttpServer, cluster: Cluster) -> Yaml:
    (argv,) = server.programs.values()
    probe = {"httpGet": {"path": HEALTH, "port": "http"}}
    tries = -(-server.deployment.startup_s // 10)
    container: Yaml = {
        "name": "server",
        "image": cluster.image,
        "command": [word.replace("$(", "$$(") for word in argv],
        "env": list(cluster.environment),
        "envFrom": list(cluster.secrets),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"limits": {"nvidia.com/gpu": cluster.gpus_a_node}},
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": tries},
        "readinessProbe": {**probe, "periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": list(cluster.mounts),
    }
    return {
        "automountServiceAccountToken": False,
        "containers": [container],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "volumes": list(cluster.volumes),
    }


def _entry(server: HttpServer) -> Yaml:
    selector = {INSTANCE: server.deployment.name}
    spec = {"selector": selector, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]}
    return {**_object("v1", "Service", server.deployment), "spec": spec}
