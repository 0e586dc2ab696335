"""`vllm serve`, vLLM's OpenAI server, on one node or several.

Its flags are those of vLLM 0.32 (`vllm/engine/arg_utils.py`, `vllm/entrypoints/launchers`). On
several nodes every node starts it with its rank; all but the first are headless. The objects for
Kubernetes are a LeaderWorkerSet, whose variables give the ranks; it was not run on a cluster.
"""

import json
from collections.abc import Iterator, Mapping, Sequence

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import (
    HEALTH,
    NODE_VARIABLES,
    PORT,
    SCRIPT,
    Cluster,
    Yaml,
    script,
    shell,
)
from specpipe.engine.vllm.arguments import ClusterNode, environment, node_count, serve_command
from specpipe.engine.vllm.check import check
from specpipe.engine.vllm.releases import default_release

LAUNCH = "launch_front.json"  # what `specpipe serve` starts, without a shell
_LISTENING = ("--host", "0.0.0.0", "--port", str(PORT))  # in a container
_ON_HOST = ("--host", "127.0.0.1", "--port", str(PORT))  # in the network of its node
_LWS = ("$(LWS_GROUP_SIZE)", "$(LWS_WORKER_INDEX)", "$(LWS_LEADER_ADDRESS)")
_VARIABLES = tuple(f"${{{name}:?}}" for name in NODE_VARIABLES)
HEAD, WORKER = "head", "worker"


class VllmServe:
    """See `HttpFront`."""

    name = "vllm_serve"
    owner = "vllm"
    needs = "the LeaderWorkerSet controller"
    entry = "-api"
    several_nodes = True

    def image(self, release: str) -> str:
        """Return vLLM's image of its OpenAI server."""
        return default_release().image

    def check(self, request: BuildRequest) -> Iterator[Rejection]:
        """Yield what the backend refuses."""
        yield from check(request)

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return a script for a shell and, for one node, the command as JSON."""
        argv, variables = serve_command(request), environment(request)
        lines = script(list(_script(request, argv, variables)))
        if node_count(request) > 1:
            return {SCRIPT: lines}
        launch = json.dumps({"argv": argv, "env": variables}, sort_keys=True) + "\n"
        return {LAUNCH: launch, SCRIPT: lines}

    def commands(self, request: BuildRequest, folder: str) -> Mapping[str, Sequence[str]]:
        """Return the one program of one node."""
        return {self.name: (*serve_command(request), *_LISTENING)}

    def node_commands(self, request: BuildRequest) -> Mapping[str, Sequence[str]]:
        """Return the programs of the first node and of the others; see `HttpFront`."""
        head = (*_on_node(request, _VARIABLES, 0), *_ON_HOST)
        return {HEAD: head, WORKER: _on_node(request, _VARIABLES, 1)}

    def objects(self, request: BuildRequest, cluster: Cluster) -> Mapping[str, Yaml]:
        """Return a LeaderWorkerSet and its service for several nodes; nothing for one."""
        if cluster.nodes == 1:
            return {}
        return {"workload.yaml": _group(request, cluster), "service.yaml": _service(cluster)}


def _script(
    request: BuildRequest, argv: Sequence[str], variables: Mapping[str, str]
) -> Iterator[str]:
    yield from (f"export {name}={value}" for name, value in variables.items())
    listening = f'--host "${{HOST:-127.0.0.1}}" --port "${{PORT:-{PORT}}}"'
    nodes = node_count(request)
    if nodes == 1:
        yield f"exec {shell(argv)} {listening}"
        return
    yield f'NNODES="${{NNODES:-{nodes}}}"  # every node runs this script, with its NODE_RANK'
    ranks = '--nnodes "$NNODES" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}"'
    yield f"set -- {shell(argv[1:])} {ranks}"
    yield f'if [ "$NODE_RANK" = 0 ]; then exec {argv[0]} "$@" {listening}; fi'
    yield f'exec {argv[0]} "$@" --headless'


def _on_node(request: BuildRequest, names: Sequence[str], rank: int) -> tuple[str, ...]:
    count, own, first = names
    node = ClusterNode(count, "0" if rank == 0 else own, first, answers=rank == 0)
    return serve_command(request, node)


def _group(request: BuildRequest, cluster: Cluster) -> Yaml:
    """Return the pods of all nodes; they restart together, as a node cannot rejoin."""
    template = {
        "size": cluster.nodes,
        "restartPolicy": "RecreateGroupOnPodRestart",
        "leaderTemplate": _pod((*_on_node(request, _LWS, 0), *_LISTENING), cluster, leads=True),
        "workerTemplate": _pod(_on_node(request, _LWS, 1), cluster, leads=False),
    }
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": {"name": cluster.name, "labels": dict(cluster.labels)},
        "spec": {"replicas": 1, "leaderWorkerTemplate": template},
    }


def _pod(argv: Sequence[str], cluster: Cluster, *, leads: bool) -> Yaml:
    address = {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container: Yaml = {
        "name": "server",
        "image": cluster.image,
        "command": list(argv),
        "env": [*cluster.environment, address],
        "envFrom": list(cluster.secrets),
        "resources": {"limits": {"nvidia.com/gpu": cluster.gpus_a_node}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": list(cluster.mounts),
    }
    if leads:
        probe = {"httpGet": {"path": HEALTH, "port": "http"}, "periodSeconds": 10}
        container["ports"] = [{"name": "http", "containerPort": PORT}]
        container["startupProbe"] = {**probe, "failureThreshold": 180}
        container["readinessProbe"] = probe
    role = {"role": "leader" if leads else "worker"}
    return {
        "metadata": {"labels": {**cluster.labels, **role}},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [container],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "volumes": list(cluster.volumes),
        },
    }


def _service(cluster: Cluster) -> Yaml:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        # No Service may be called vllm: its variable VLLM_PORT would be a URI, which vLLM refuses.
        "metadata": {"name": f"{cluster.name}-api", "labels": dict(cluster.labels)},
        "spec": {
            "selector": {**cluster.labels, "role": "leader"},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }
