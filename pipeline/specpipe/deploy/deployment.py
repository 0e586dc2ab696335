"""What a deployment must know of a run, and the names and ports that all its files share."""

import re
from dataclasses import dataclass

HTTP, GRPC, METRICS, SSH = 8000, 8001, 8002, 2222
UID = 1000  # of the server: `triton-server` in NVIDIA's images
REPOSITORY = "/models"  # where a repository lies inside a container that does not care
DRAIN_SECONDS = 60  # that answers may take to end when a container is stopped
STOP_SECONDS = DRAIN_SECONDS + 20  # until nothing of the server is left
PACKAGE = "/opt/specpipe"  # where specpipe lies inside the image
ENTRY_MODELS = "ensemble|tensorrt_llm_bls"  # whose requests are the clients'


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
    requirements: tuple[str, ...]  # Python packages that the image needs beside `base`

    @property
    def name(self) -> str:
        """The run's name as Kubernetes allows it: a DNS label."""
        label = re.sub(r"[^a-z0-9-]+", "-", self.run.lower()).strip("-")
        return f"specpipe-{label}"[:44].rstrip("-")  # "-ranks", numbers and a hash follow: 63

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
        ]
