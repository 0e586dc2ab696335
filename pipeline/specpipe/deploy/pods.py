"""The pods of a deployment: one container with Triton, or a leader and its workers over nodes."""

import re
from typing import Any

from specpipe.deploy.deployment import GRPC, HTTP, METRICS, SSH, STOP_SECONDS, UID, Deployment

Yaml = dict[str, Any]

_HOSTS = "/tmp/hosts"
LEAVING_SECONDS = 10  # until no client finds a pod that is to end

# What Kubernetes' "restricted" policy asks of a pod, and of a container.
AS_USER: Yaml = {
    "runAsNonRoot": True,
    "runAsUser": UID,
    "runAsGroup": UID,
    "fsGroup": UID,
    "seccompProfile": {"type": "RuntimeDefault"},
}
UNPRIVILEGED: Yaml = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def labels(deployment: Deployment) -> Yaml:
    """Return what selects the pods that answer clients."""
    return {"app.kubernetes.io/name": "specpipe", "app.kubernetes.io/instance": deployment.name}


def single_pod(deployment: Deployment) -> Yaml:
    """Return the pod template of a server on one node."""
    container = _server(deployment, deployment.command())
    return {"metadata": {"labels": labels(deployment)}, "spec": _pod(deployment, container)}


def leader_pod(deployment: Deployment) -> Yaml:
    """Return the pod template that runs Triton and starts the ranks on the other nodes.

    Open MPI reads its host file and how to reach the hosts from the environment, so the command is
    that of one node; the variables are those of 4.1, which NVIDIA's images have with HPC-X, not of
    5. LeaderWorkerSet gives the pods their addresses.
    """
    script = (
        f"python3 -c '{_WRITE_HOSTS}' {deployment.gpus_a_node} > {_HOSTS} && "
        f"exec {' '.join(deployment.command())}"
    )
    container = _server(deployment, ["sh", "-c", script])
    container["env"] += [
        {"name": "OMPI_MCA_orte_default_hostfile", "value": _HOSTS},
        {"name": "OMPI_MCA_plm_rsh_args", "value": f"-p {SSH} -i /ssh/key {_NO_HOST_KEYS}"},
    ]
    container["volumeMounts"].append({"name": "ssh", "mountPath": "/ssh", "readOnly": True})
    spec = _pod(deployment, container)
    spec["volumes"].append(_keys(deployment))
    return {"metadata": {"labels": labels(deployment)}, "spec": spec}


def worker_pod(deployment: Deployment) -> Yaml:
    """Return the pod template of the other nodes: a door for the leader's Open MPI."""
    container = _container(deployment, ["sh", "-c", _SSH_DAEMON])
    container["ports"] = [{"name": "ssh", "containerPort": SSH}]
    container["readinessProbe"] = {"tcpSocket": {"port": "ssh"}}
    container["volumeMounts"].append({"name": "ssh", "mountPath": "/ssh", "readOnly": True})
    spec = _pod(deployment, container)
    spec["volumes"].append(_keys(deployment))
    role = {**labels(deployment), "app.kubernetes.io/component": "worker"}
    role["app.kubernetes.io/instance"] = f"{deployment.name}-worker"
    return {"metadata": {"labels": role}, "spec": spec}


# LeaderWorkerSet names the pods of a group <leader>, <leader>-1, ... and gives their addresses by
# the leader's: LWS_LEADER_ADDRESS is <leader>.<service>.<namespace>.
_WRITE_HOSTS = (
    "import os, sys; "
    'pod, _, domain = os.environ["LWS_LEADER_ADDRESS"].partition("."); '
    'size = int(os.environ["LWS_GROUP_SIZE"]); '
    'names = [pod, *(f"{pod}-{i}" for i in range(1, size))]; '
    'print("\\n".join(f"{name}.{domain} slots={sys.argv[1]}" for name in names))'
)
# A login has none of the image's environment, in which Open MPI finds its libraries.
_SSH_DAEMON = (
    f"exec /usr/sbin/sshd -D -e -f /dev/null -p {SSH} -o PidFile=none -o UsePAM=no "
    "-o StrictModes=no -o PasswordAuthentication=no -o HostKey=/ssh/key "
    '-o AuthorizedKeysFile=/ssh/key.pub -o "SetEnv=PATH=$PATH LD_LIBRARY_PATH=$LD_LIBRARY_PATH"'
)
_NO_HOST_KEYS = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"


def _keys(deployment: Deployment) -> Yaml:
    secret = {"secretName": f"{deployment.name}-ssh", "defaultMode": 0o440}
    return {"name": "ssh", "secret": secret}


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


def _container(deployment: Deployment, command: list[str]) -> Yaml:
    memory = f"{deployment.host_memory_gib}Gi"
    limits: Yaml = {"memory": memory}
    if deployment.gpus:
        limits["nvidia.com/gpu"] = deployment.gpus_a_node
    return {
        "name": "triton",
        "image": deployment.image,
        "command": command,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "resources": {
            "requests": {"cpu": str(4 * max(1, deployment.gpus_a_node)), "memory": memory},
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
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": claim},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
            {"name": "temporary", "emptyDir": {}},
        ],
    }
    if deployment.gpu_product:
        spec["nodeSelector"] = {"nvidia.com/gpu.product": _node_label(deployment.gpu_product)}
    if deployment.gpus:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return spec


def _node_label(product: str) -> str:
    """Say a GPU's name as GPU feature discovery labels nodes (k8s-device-plugin internal/lm)."""
    return "-".join(re.sub(r"[^A-Za-z0-9-_. ]", "", product).split())
