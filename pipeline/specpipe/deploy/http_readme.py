"""README.md of a deployment without Triton."""

from specpipe.deploy.http_server import HttpServer
from specpipe.deploy.readme import commands_block
from specpipe.engine.fronts.front import PORT


def docker_readme(server: HttpServer) -> str:
    """Return what to type to run the compose file, as Markdown."""
    run = server.deployment.run
    if server.node_programs:
        return _nodes_readme(server)
    lines = [
        f"# {run} with docker: {server.front.name}",
        "",
        "From the folder above this one:",
        "",
        *commands_block(
            "export HF_TOKEN=...   # only for models that need a token",
            "docker compose -f docker/compose.yaml up -d",
        ),
        f"The OpenAI API is on loopback, port {PORT}. The first start downloads the model.",
        "",
        *_call(f"http://127.0.0.1:{PORT}"),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _nodes_readme(server: HttpServer) -> str:
    """Return what to type on every node."""
    count, (head, other) = server.deployment.nodes, server.node_programs
    variables = f"export NNODES={count} MASTER_ADDR=10.0.0.1 NODE_ADDRESS=10.0.0.1"
    lines = [
        f"# {server.deployment.run} with docker on {count} nodes: {server.front.name}",
        "",
        f"Copy this folder to {count} nodes of {server.deployment.gpus_a_node} GPUs. Every node "
        "sees the model at the same path, or downloads it. MASTER_ADDR is the address of the first "
        "node, NODE_ADDRESS that of the node itself. The nodes exchange data without encryption: "
        "use a private network.",
        "",
        "On the first node:",
        "",
        *commands_block(
            f"{variables} NODE_RANK=0",
            f"docker compose -f docker/compose.{head}.yaml up -d",
        ),
        "On every other node, with a NODE_RANK of its own, from 1 on:",
        "",
        *commands_block(
            f"export NNODES={count} MASTER_ADDR=10.0.0.1 NODE_ADDRESS=10.0.0.2 NODE_RANK=1",
            f"docker compose -f docker/compose.{other}.yaml up -d",
        ),
        "A node that ends cannot rejoin. Restart the containers of all nodes then.",
        "",
        *_call(f"http://127.0.0.1:{PORT}"),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def kubernetes_readme(server: HttpServer) -> str:
    """Return what to type to run the manifests, as Markdown."""
    name = server.deployment.name
    copied = [
        f"Copy `{folder}` into the volume `{name}-models`, as `{folder.strip('/')}`."
        for folder in server.folders
    ]
    own = server.has_own_objects
    operator = [f"The cluster needs {server.front.needs}.", ""] if own else []
    entry = f"{name}{server.front.entry}" if own else name
    lines = [
        f"# {server.deployment.run} on Kubernetes: {server.front.name}",
        "",
        *operator,
        *(line for text in copied for line in (text, "")),
        "From the folder above this one:",
        "",
        *commands_block(
            f"kubectl create secret generic {name}-token --from-literal=HF_TOKEN=...   "
            "# only for models that need a token",
            "kubectl apply -k kubernetes",
            f"kubectl port-forward service/{entry} {PORT}:{PORT}",
        ),
        *_call(f"http://127.0.0.1:{PORT}"),
    ]
    return "\n".join(lines) + "\n"


def _call(url: str) -> list[str]:
    return [
        "Then:",
        "",
        *commands_block(
            f'specpipe generate --url {url} "What is the capital of France?"',
            f"specpipe validate --config run.yaml --url {url}",
        ),
    ]
