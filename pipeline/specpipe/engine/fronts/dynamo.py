"""Dynamo's frontend and its TensorRT-LLM worker, which may span several nodes.

The programs and the graph follow `examples/backends/trtllm/deploy/v1beta1` of ai-dynamo/dynamo
(commits 2ac51dda and 04521f47, for Dynamo 1.3.1). That later releases take them was not tried.
"""

from collections.abc import Iterator, Mapping, Sequence

from specpipe.core.errors import Rejection
from specpipe.engine.backend import BuildRequest
from specpipe.engine.fronts.front import CONFIG_FOLDER, PORT, SCRIPT, Cluster, Yaml, script, shell
from specpipe.engine.fronts.trtllm_serve import check_release, options
from specpipe.engine.llmapi.releases import find_release

ENGINE_ARGS = "engine_args.yaml"
_AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
_FRONTEND, _WORKER = "frontend", "worker"


class Dynamo:
    """See `HttpFront`."""

    name = "dynamo"
    owner = "nvidia"
    needs = "Dynamo's operator"
    entry = "-frontend"
    several_nodes = True

    def image(self, release: str) -> str:
        """Return the `tensorrtllm-runtime` that has this release of TensorRT-LLM."""
        found = find_release(release)
        return (found.dynamo or "") if found else ""

    def check(self, request: BuildRequest) -> Iterator[Rejection]:
        """Yield why no release of Dynamo is known for the run's release."""
        yield from check_release(request, self.name, "Dynamo")

    def files(self, request: BuildRequest) -> Mapping[str, str]:
        """Return the engine's arguments, and a script that starts both programs."""
        programs = self.commands(request, ".")
        lines = [
            f"{shell(programs[_FRONTEND])} &",
            "trap 'kill $!' EXIT",
            shell(programs[_WORKER]),
        ]
        return {ENGINE_ARGS: options(request), SCRIPT: script(lines)}

    def commands(self, request: BuildRequest, folder: str) -> Mapping[str, Sequence[str]]:
        """Return frontend and worker; they find each other through etcd and NATS."""
        model = request.sources["target"]
        worker = (
            "python3", "-m", "dynamo.trtllm", "--model-path", model, "--served-model-name", model,
            "--extra-engine-args", f"{folder}/{ENGINE_ARGS}",
        )  # fmt: skip
        frontend = ("python3", "-m", "dynamo.frontend", "--http-port", str(PORT))
        return {_FRONTEND: frontend, _WORKER: worker}

    def node_commands(self, request: BuildRequest) -> Mapping[str, Sequence[str]]:
        """Return nothing."""
        return {}

    def objects(self, request: BuildRequest, cluster: Cluster) -> Mapping[str, Yaml]:
        """Return the graph, for Dynamo's operator."""
        programs = self.commands(request, CONFIG_FOLDER)
        worker = _component(_WORKER, programs[_WORKER], cluster)
        (container,) = worker["podTemplate"]["spec"]["containers"]
        container["resources"] = {"limits": {"nvidia.com/gpu": str(cluster.gpus_a_node)}}
        if cluster.nodes > 1:
            worker["multinode"] = {"nodeCount": cluster.nodes}
        spec = {
            "backendFramework": "trtllm",
            "components": [_component(_FRONTEND, programs[_FRONTEND], cluster), worker],
            "env": [
                *cluster.environment,
                *({"name": name, "value": "1"} for name in _AS_ROOT if cluster.nodes > 1),
            ],
        }
        graph = {
            "apiVersion": "nvidia.com/v1beta1",
            "kind": "DynamoGraphDeployment",
            "metadata": {"name": cluster.name, "labels": dict(cluster.labels)},
            "spec": spec,
        }
        return {"graph.yaml": graph}


def _component(kind: str, argv: Sequence[str], cluster: Cluster) -> Yaml:
    container: Yaml = {
        "name": "main",
        "image": cluster.image,
        "command": list(argv[:3]),
        "args": list(argv[3:]),
        "volumeMounts": list(cluster.mounts),
        "envFrom": list(cluster.secrets),
    }
    spec: Yaml = {"containers": [container], "volumes": list(cluster.volumes)}
    return {"name": kind, "type": kind, "replicas": 1, "podTemplate": {"spec": spec}}
