"""README.md of a deployment: its commands, with the names of the run."""

from specpipe.deploy.deployment import (
    CERTIFICATE,
    CLIENT_CA,
    KEY,
    OPENAI,
    TLS,
    UID,
    Deployment,
)
from specpipe.deploy.pods import client_label
from specpipe.deploy.ranks import ALIAS


def docker_readme(deployment: Deployment) -> str:
    """Return what to type to run the compose file, as Markdown."""
    lines = [
        f"# {deployment.run} with docker",
        "",
        "From the folder above this one:",
        "",
        *commands_block(
            "docker compose -f docker/compose.yaml up --build -d",
            "docker compose -f docker/compose.yaml logs -f triton",
        ),
        "The ports are on loopback: gRPC 8001, HTTP 8000, metrics 8002. Add `--profile monitoring` "
        "for Prometheus and Grafana.",
    ]  # fmt: skip
    if deployment.openai:
        lines += ["", f"The OpenAI API is at `http://127.0.0.1:{OPENAI}/v1`, without a key."]
    if deployment.certificates:
        lines += [
            "",
            f"gRPC is encrypted. User {UID} of the container must be able to read the files that "
            f"are mounted at `{TLS}`.",
        ]
    return "\n".join(lines) + "\n"


def kubernetes_readme(deployment: Deployment, loader: str) -> str:
    """Return what to type to run the manifests, as Markdown.

    `loader` is the pod that the model repository is copied to.
    """
    name = deployment.name
    (label,) = client_label(deployment)
    lines = [
        f"# {deployment.run} on Kubernetes",
        "",
        "From the folder above this one, build the image and copy the model repository into the "
        "volume:",
        "",
        *commands_block(
            f"docker build -t {deployment.image} docker",
            f"docker push {deployment.image}",
            "kubectl apply -f kubernetes/volume.yaml -f kubernetes/network-policy.yaml "
            "-f kubernetes/loader.yaml",
            f"kubectl cp ../../triton_repo/{deployment.run}/. {loader}:{deployment.repository}",
            "kubectl delete -f kubernetes/loader.yaml",
        ),
        *(_ssh(deployment) if deployment.nodes > 1 else ()),
        *(_tls(deployment) if deployment.certificates else ()),
        "Start the server:",
        "",
        *commands_block("kubectl apply -k kubernetes"),
        "The network policy lets in pods of this namespace that have the clients' label:",
        "",
        *commands_block(f"kubectl label pod CLIENT {label}=true"),
        f"They call `{name}:8001` (gRPC) or `{name}:8000` (HTTP).",
        *([f"The OpenAI API is at `http://{name}:{OPENAI}/v1`."] if deployment.openai else ()),
    ]
    return "\n".join(lines) + "\n"


def _ssh(deployment: Deployment) -> list[str]:
    return [
        "The leader's Open MPI starts the ranks on the other nodes by ssh. One key pair proves the "
        "leader to the workers, another the workers to the leader:",
        "",
        *commands_block(
            "ssh-keygen -q -t ed25519 -N '' -C leader -f client",
            "ssh-keygen -q -t ed25519 -N '' -C worker -f host",
            f"echo \"{ALIAS} $(cut -d' ' -f1,2 host.pub)\" > known_hosts",
            f"kubectl create secret generic {deployment.name}-ssh-client "
            "--from-file=id_ed25519=client --from-file=known_hosts",
            f"kubectl create secret generic {deployment.name}-ssh-host "
            "--from-file=ssh_host_ed25519_key=host --from-file=authorized_keys=client.pub",
            "rm client client.pub host host.pub known_hosts",
        ),
    ]


def _tls(deployment: Deployment) -> list[str]:
    names = [n for n in (CERTIFICATE, KEY, CLIENT_CA) if n in deployment.certificates]
    files = " ".join(f"--from-file={name}=FILE" for name in names)
    return [
        f"gRPC is encrypted with the files of a secret; the certificate names `{deployment.name}`:",
        "",
        *commands_block(f"kubectl create secret generic {deployment.name}-tls {files}"),
    ]


def commands_block(*commands: str) -> list[str]:
    """Return the lines of a block of shell commands."""
    return ["```bash", *commands, "```", ""]
