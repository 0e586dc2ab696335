"""README.md of a deployment without Triton."""

from specpipe.deploy.http_server import HttpServer
from specpipe.engine.fronts.front import PORT


def docker_readme(server: HttpServer) -> str:
    """Return what to type to run the compose file, as Markdown."""
    run = server.deployment.run
    lines = [
        f"# {run} with docker: {server.front.name}",
        "",
        "From the folder above this one:",
        "",
        *_block("export HF_TOKEN=...   # only for models that need a token",
                "docker compose -f docker/compose.yaml up -d"),
        f"The OpenAI API is on loopback, port {PORT}. The first start downloads the model.",
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
    operator = ["The cluster needs Dynamo's operator.", ""] if server.front.several_nodes else []
    entry = f"{name}-frontend" if server.front.several_nodes else name
    lines = [
        f"# {server.deployment.run} on Kubernetes: {server.front.name}",
        "",
        *operator,
        *(line for text in copied for line in (text, "")),
        "From the folder above this one:",
        "",
        *_block(
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
        *_block(
            f'specpipe generate --url {url} "What is the capital of France?"',
            f"specpipe validate --config run.yaml --url {url}",
        ),
    ]


def _block(*commands: str) -> list[str]:
    return ["```bash", *commands, "```", ""]
