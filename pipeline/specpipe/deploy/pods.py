"""The pods of a deployment: one container with Triton, or a leader and its workers over nodes."""

import re
from typing import Any

from specpipe.deploy import ranks
from specpipe.deploy.deployment import (
    FRONT_GIB,
    GRPC,
    HTTP,
    METRICS,
    OPENAI,
    SHARED_MEMORY_GIB,
    SSH,
    STOP_SECONDS,
    TEMPORARY_GIB,
    TLS,
    UID,
    Deployment,
)

Yaml = dict[str, Any]

INSTANCE = "app.kubernetes.io/instance"  # the label with a deployment's name
LEAVING_SECONDS = 10  # until no client finds a pod that is to end

# What Kubernetes' "restricted" policy asks of a pod, and of a container.
AS_USER: Yaml = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    "fsGroupChangePolicy": "OnRootMismatch",  # else every start goes through all files
    "seccompProfile": {"type": "RuntimeDefault"},
}
UNPRIVILEGED: Yaml = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def labels(deployment: Deployment) -> Yaml:
    """Return what selects the pods that answer clients."""
    return {
        "app.kubernetes.io/name": "specpipe",
        INSTANCE: deployment.name,
        **membership(deployment),
    }


def membership(deployment: Deployment) -> Yaml:
    """Return the label that every pod of a deployment has, those that clients never meet too."""
    return {"app.kubernetes.io/part-of": deployment.name}


def client_label(deployment: Deployment) -> Yaml:
    """Return the label that lets a pod of the namespace in; a pod may have several."""
    return {f"client-of.specpipe/{deployment.name}": "true"}


def single_pod(deployment: Deployment) -> Yaml:
    """Return the pod template of a server on one node."""
    spec = _server_pod(deployment, deployment.command())
    spec["containers"] += _front(deployment)
    return {"metadata": {"labels": labels(deployment)}, "spec": spec}


def leader_pod(deployment: Deployment) -> Yaml:
    """Return the pod template that runs Triton and starts the ranks on the other nodes.

    Open MPI reads its host file and how to reach the hosts from the environment, so the command is
    that of one node; the variables are those of 4.1, which NVIDIA's images have with HPC-X, not of
    5. It splits the second at spaces, of which the options have none.
    """
    command = [*_RANKS, "leader", str(deployment.gpus_a_node), *deployment.command()]
    spec = _server_pod(deployment, command)
    (container,) = spec["containers"]
    container["env"] += [
        {"name": "OMPI_MCA_orte_default_hostfile", "value": str(ranks.HOSTS)},
        {"name": "OMPI_MCA_plm_rsh_args", "value": " ".join(ranks.ssh_options())},
    ]
    _add_secret(spec, f"{deployment.name}-ssh-client", ranks.SECRETS)
    spec["containers"] += _front(deployment)
    return {"metadata": {"labels": labels(deployment)}, "spec": spec}


def worker_pod(deployment: Deployment) -> Yaml:
    """Return the pod template of the other nodes: a door for the leader's Open MPI."""
    container = _container(deployment, [*_RANKS, "worker"])
    container["ports"] = [{"name": "ssh", "containerPort": SSH}]
    container["readinessProbe"] = {"tcpSocket": {"port": "ssh"}}
    spec = _pod(deployment, container)
    _add_secret(spec, f"{deployment.name}-ssh-host", ranks.SECRETS)
    role = {**labels(deployment), "app.kubernetes.io/component": "worker"}
    role[INSTANCE] = f"{deployment.name}-worker"
    return {"metadata": {"labels": role}, "spec": spec}


_RANKS = ("python3", "-m", "specpipe.deploy.ranks")


def _add_secret(spec: Yaml, name: str, folder: str) -> None:
    """Mount a secret in the pod's container; only its group reads it."""
    volume = folder.removeprefix("/")
    secret = {"secretName": name, "defaultMode": 0o440}
    spec["volumes"].append({"name": volume, "secret": secret})
    (container,) = spec["containers"]
    mount = {"name": volume, "mountPath": folder, "readOnly": True}
    container["volumeMounts"].append(mount)


def _server_pod(deployment: Deployment, command: list[str]) -> Yaml:
    spec = _pod(deployment, _server(deployment, command))
    if deployment.certificates:
        _add_secret(spec, f"{deployment.name}-tls", TLS)
    return spec


def _server(deployment: Deployment, command: list[str]) -> Yaml:
    container = _container(deployment, command)
    ports = {"http": HTTP, "grpc": GRPC, "metrics": METRICS}
    container["ports"] = [{"name": n, "containerPort": p} for n, p in ports.items()]
    ready = {"httpGet": {"path": "/v2/health/ready", "port": "http"}}
    live = {"httpGet": {"path": "/v2/health/live", "port": "http"}}
    tries = -(-deployment.startup_s // 10)
    container["startupProbe"] = {**ready, "periodSeconds": 10, "failureThreshold": tries}
    container["readinessProbe"] = {**ready, "periodSeconds": 5, "timeoutSeconds": 3}
    container["livenessProbe"] = {
        **live,
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 6,
    }
    # Clients learn of the end of a pod a little after the pod does.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", str(LEAVING_SECONDS)]}}}
    return container


def _front(deployment: Deployment) -> list[Yaml]:
    """Return the container of the OpenAI API, next to the server that it calls, if there is one."""
    if not deployment.openai:
        return []
    limits = {"memory": f"{FRONT_GIB}Gi", "ephemeral-storage": f"{TEMPORARY_GIB}Gi"}
    health = {"httpGet": {"path": "/version", "port": "openai"}}
    front = {
        "name": "openai",
        "image": deployment.image,
        "command": [_literal(word) for word in deployment.front_command("127.0.0.1")],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "ports": [{"name": "openai", "containerPort": OPENAI}],
        "readinessProbe": {**health, "periodSeconds": 5},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(LEAVING_SECONDS)]}}},
        "resources": {"requests": {"cpu": "1", **limits}, "limits": limits},
        "securityContext": {**UNPRIVILEGED, "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "models", "mountPath": deployment.repository, "readOnly": True},
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }
    return [front]


def _container(deployment: Deployment, command: list[str]) -> Yaml:
    memory = f"{deployment.host_memory_gib}Gi"
    disk = f"{TEMPORARY_GIB + 1}Gi"  # and the container's own output
    limits: Yaml = {"memory": memory, "ephemeral-storage": disk}
    if deployment.gpus:
        limits["nvidia.com/gpu"] = deployment.gpus_a_node
    return {
        "name": "triton",
        "image": deployment.image,
        "command": [_literal(word) for word in command],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {
            "requests": {
                "cpu": str(4 * max(1, deployment.gpus_a_node)),
                "memory": memory,
                "ephemeral-storage": disk,
            },
            "limits": limits,
        },
        "securityContext": {**UNPRIVILEGED, "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "models", "mountPath": deployment.repository, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }


def _pod(deployment: Deployment, container: Yaml) -> Yaml:
    claim = {"claimName": f"{deployment.name}-models", "readOnly": True}
    spec: Yaml = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": LEAVING_SECONDS + STOP_SECONDS,
        "securityContext": AS_USER,
        "topologySpreadConstraints": [_spread(deployment)],
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": claim},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHARED_MEMORY_GIB}Gi"},
            },
            {"name": "temporary", "emptyDir": {"sizeLimit": f"{TEMPORARY_GIB}Gi"}},
        ],
    }
    if deployment.gpu_product:
        spec["nodeSelector"] = {"nvidia.com/gpu.product": _node_label(deployment.gpu_product)}
    if deployment.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return spec


def _spread(deployment: Deployment) -> Yaml:
    """Return the wish that pods of a deployment lie on several nodes, if there are several."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": membership(deployment)},
    }


def _literal(word: str) -> str:
    """Return an argument that Kubernetes hands on as it is: it expands $(NAME)."""
    return word.replace("$(", "$$(")


def _node_label(product: str) -> str:
    """Return a GPU's name as GPU feature discovery labels nodes (k8s-device-plugin internal/lm)."""
    return "-".join(re.sub(r"[^A-Za-z0-9-_. ]", "", product).split())
