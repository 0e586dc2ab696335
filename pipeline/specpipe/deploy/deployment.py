"""The facts of a run that its deployment needs, and the names and ports that all files share."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specpipe.core.errors import ConfigError, Unsupported

HTTP, GRPC, METRICS, SSH, OPENAI = 8000, 8001, 8002, 2222, 9000
UID = 1000  # of the server: `triton-server` in NVIDIA's images
REPOSITORY = "/models"  # where a repository lies inside a container that does not care
DRAIN_SECONDS = 60  # that answers may take to end when a container is stopped
STOP_SECONDS = DRAIN_SECONDS + 20  # until nothing of the server is left
PACKAGE = "/opt/specpipe"  # where specpipe lies inside the image
TLS = "/tls"  # where the certificates of the gRPC endpoint lie in a container
CERTIFICATE, KEY, CLIENT_CA = "tls.crt", "tls.key", "ca.crt"  # as Kubernetes' secrets name them
SHARED_MEMORY_GIB = 2  # requests and answers between tritonserver and its models
FRONT_GIB = 1  # memory of the OpenAI API: the tokenizer, and requests in flight
TEMPORARY_GIB = 1  # logs, which are rotated, and sockets
MOST_REPLICAS = 4  # of an autoscaled server
_LONGEST = 44  # "-ranks", numbers and a hash follow: 63, the most characters of a label

AccessMode = Literal["ReadWriteMany", "ReadWriteOnce"]


@dataclass(frozen=True)
class Deployment:
    """One served repository: what it needs of the machines that run it."""

    run: str  # the run's name
    image: str  # what the containers run; built from `base`
    base: str  # the image that it is built from
    gpus: int  # of the whole server; 0: it runs on CPUs
    gpus_per_node: int
    gpu_product: str | None  # the driver's name of the GPU that the engines were built on
    host_memory_gib: int
    repository_gib: int
    sequences: int  # that are decoded at a time
    repository: str  # where the server sees it; paths to GPU engines are written into it
    requirements: tuple[str, ...]  # Python packages that the image needs in addition to `base`
    texts: tuple[str, ...] = ("ensemble", "tensorrt_llm_bls")  # the models that clients call
    monitoring: str = "monitoring"  # the namespace whose Prometheus may read the metrics
    monitoring_release: str | None = None  # label `release`, by which Prometheus Operator selects
    access_mode: AccessMode = "ReadWriteMany"  # of the volume with the models
    storage_class: str | None = None  # of the volume; None: the cluster's default
    speculates: bool = True  # whether the method of the run is another than `none`
    has_meters: bool = True  # whether specpipe's text models run, which export its metrics
    certificates: Mapping[str, str] = field(default_factory=dict)  # of gRPC: name -> file here
    openai: bool = False  # whether a container of its own serves the OpenAI API
    tokenizer: str = ""  # its folder below the repository; empty: the front does without

    @property
    def name(self) -> str:
        """The run's name as a DNS label."""
        return unique_name(self.run)

    @property
    def replicas(self) -> int:
        """Count the most copies of the server: one pod only can mount a volume ReadWriteOnce."""
        return MOST_REPLICAS if self.access_mode == "ReadWriteMany" else 1

    @property
    def nodes(self) -> int:
        """Machines that one server spans."""
        return max(1, -(-self.gpus // self.gpus_per_node))

    @property
    def gpus_a_node(self) -> int:
        """GPUs that every one of them gives."""
        return self.gpus // self.nodes

    @property
    def startup_s(self) -> int:
        """How long loading may take: weights from a slow disk, at 100 MB/s, and some minutes."""
        return 300 + 11 * self.repository_gib

    @property
    def busy(self) -> int:
        """Requests in flight at which another replica is worth its GPUs: three slots in four."""
        return max(1, self.sequences * 3 // 4)

    def command(self) -> list[str]:
        """Return what the container runs."""
        return [
            *("python3", "-m", "specpipe", "serve"),
            *("--repository", self.repository),
            *("--host", "0.0.0.0"),
            *("--timeout", str(self.startup_s)),
            *("--drain", str(DRAIN_SECONDS)),
            "--log-to-stderr",
            *self._tls_options(),
        ]

    def front_command(self, host: str) -> list[str]:
        """Return what the container of the OpenAI API runs; the server's gRPC is at `host`."""
        folder = f"{self.repository}/{self.tokenizer}"
        return [
            *("python3", "-m", "specpipe", "openai"),
            *("--url", f"{host}:{GRPC}"),
            *("--host", "0.0.0.0"),
            *("--port", str(OPENAI)),
            *("--served-model-name", self.run),
            *(("--tokenizer", folder) if self.tokenizer else ()),
        ]

    def _tls_options(self) -> list[str]:
        options = {CERTIFICATE: "--tls-certificate", KEY: "--tls-key", CLIENT_CA: "--tls-client-ca"}
        return [word for name in self.certificates for word in (options[name], f"{TLS}/{name}")]


def unique_name(run: str) -> str:
    """Return a DNS label that no other run has, which is also part of an image's reference.

    A name that has other characters, or too many, is changed and ends in a digest of itself.
    """
    label = f"specpipe-{re.sub(r'[^a-z0-9]+', '-', run.lower())}"
    if label == f"specpipe-{run}" and len(label) <= _LONGEST and label[-1] != "-":
        return label
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return f"{label[: _LONGEST - 9].rstrip('-')}-{digest}"


def require_even_nodes(deployment: Deployment) -> None:
    """Raise Unsupported unless the nodes of a server give equal numbers of GPUs, and may be many.

    `deployment.gpus_a_node` has no meaning otherwise.
    """
    gpus, nodes, most = deployment.gpus, deployment.nodes, deployment.gpus_per_node
    if gpus % nodes:
        fitting = ", ".join(str(n) for n in range(1, most + 1) if gpus % n == 0)
        raise Unsupported(
            f"{gpus} GPUs do not divide over {nodes} nodes of at most {most}",
            hint=f"set --gpus-per-node to a number that divides {gpus} ({fitting}), or to {gpus} "
            "or more; or change engine.tp_size and engine.pp_size",
        )
    if nodes > 1 and deployment.access_mode != "ReadWriteMany":
        raise Unsupported(
            f"{nodes} nodes mount the volume with the models, and --access-mode is "
            f"{deployment.access_mode}",
            hint="leave --access-mode out, and give a --storage-class that has ReadWriteMany",
        )


_COMPONENT = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]+)?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)


def require_pinned(image: str, option: str) -> str:
    """Return an image's reference; raises ConfigError unless its tag or digest is given.

    The grammar is that of the distribution project's references.
    """
    found = _REFERENCE.fullmatch(image)
    if found is None:
        raise ConfigError(
            f"{option} is {image!r}: not the reference of an image", hint="e.g. registry/name:1.0"
        )
    if not found["digest"] and found["tag"] in (None, "latest"):
        raise ConfigError(
            f"{option} is {image!r}, which names another image tomorrow",
            hint="give a tag other than latest, or a digest (name@sha256:...)",
        )
    return image
