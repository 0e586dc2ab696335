"""`specpipe openai`: the OpenAI-compatible front before a server that runs elsewhere."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import (
    client_tls,
    client_tls_options,
    front_options,
    host_option,
    json_option,
    read_key,
    require_metrics_url,
    url_option,
)
from specpipe.cli.output import say, suggest

if TYPE_CHECKING:
    from specpipe.core.endpoint import Endpoint
    from specpipe.openai.app import FrontOptions
    from specpipe.openai.server import FrontAddress


@click.command("openai")
@url_option
@host_option
@click.option(
    "--port",
    metavar="PORT",
    default=9000,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port of the OpenAI API.",
)
@click.option(
    "--tokenizer",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder preprocessing/1/tokenizer of the repository, for token ids and logprobs.",
)
@click.option(
    "--metrics-url",
    metavar="URL",
    callback=require_metrics_url,
    help="Metrics of the Triton server, http://HOST:8002/metrics, for GET /metrics.",
)
@front_options
@client_tls_options
@json_option
def openai(
    url: str,
    host: str,
    port: int,
    tokenizer: Path | None,
    metrics_url: str | None,
    served_model_name: str | None,
    api_key_file: Path | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
) -> None:
    """Serve the OpenAI API in front of a running server until Ctrl-C.

    `specpipe serve --openai-port N` does the same for the server that it starts. Prints one JSON
    line on stdout when it listens; requests are answered as soon as the server is ready.

    \b
    Example:  specpipe openai --url 127.0.0.1:8001 --port 9000
    """
    from specpipe.cli.ending import handle
    from specpipe.openai.app import FrontOptions
    from specpipe.openai.server import FrontAddress
    from specpipe.serve.description import fetch_endpoint

    tls = client_tls(tls_ca, tls_certificate, tls_key)
    stopped = threading.Event()
    handle(stopped.set)
    address, name = FrontAddress(host, port), served_model_name or "specpipe"
    options = FrontOptions(url, name, read_key(api_key_file), tls, tokenizer, metrics_url)
    with open_front(options, address, lambda: fetch_endpoint(url, tls)):
        click.echo(json.dumps({"ready": True, "openai": address.url, "model": name}))
        suggest(curl_command(address, name), as_json)
        stopped.wait()
    say("front stopped")


def open_front(
    options: "FrontOptions", address: "FrontAddress", find_endpoint: "Callable[[], Endpoint]"
) -> AbstractContextManager[object]:
    """Return a running front, as a context manager."""
    from specpipe.openai.app import Front
    from specpipe.openai.server import serve_front

    return serve_front(Front(options, find_endpoint), address)


def curl_command(address: "FrontAddress", name: str) -> str:
    """Return a command that asks the front for an answer."""
    body = {
        "model": name,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    return (
        f"curl {address.url}/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )
