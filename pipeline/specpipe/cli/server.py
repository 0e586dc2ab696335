"""A running server, and what a client asks it: `serve generate`."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import (
    client_tls,
    client_tls_options,
    json_option,
    optional_config_option,
    port_options,
    require_host_and_port,
    tls_options,
    workspace_option,
)
from specpipe.cli.output import harmless, load, say
from specpipe.cli.sampling import to_upstream
from specpipe.errors import ConfigError

if TYPE_CHECKING:
    from specpipe.artifacts import Workspace
    from specpipe.config import RunConfig
    from specpipe.serve.guard import Tls
    from specpipe.serve.tritonserver import RunningServer


@click.command()
@optional_config_option("The run's YAML file; its repository must be built and fresh.")
@workspace_option
@click.option(
    "--repository",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Serve this packaged repository, wherever it came from, instead of a run's.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.IntRange(min=1),
    help="Seconds that the models may take to load; 120 on CPUs and 1800 on GPUs if not given.",
)
@click.option(
    "--drain",
    "drain_s",
    metavar="S",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Seconds that requests may take to end when the server is stopped.",
)
@click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Start a server that ends by itself or hangs again, N times an hour at most.",
)
@click.option(
    "--stall-timeout",
    "stalled_s",
    metavar="S",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Seconds without progress after which the server counts as hung.",
)
@click.option("--log-to-stderr", is_flag=True, help="Show the server's output too; for containers.")
@json_option
@port_options
@tls_options
def serve(
    config_path: Path | None,
    workspace: Path,
    repository: Path | None,
    timeout_s: int | None,
    drain_s: int,
    restarts: int,
    stalled_s: int,
    log_to_stderr: bool,
    as_json: bool,
    host: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
) -> None:
    """Serve the packaged repository with Triton until Ctrl-C.

    Prints one JSON line on stdout when every model is ready, at every start. When it is stopped,
    requests in hand are answered first; a second Ctrl-C does not wait for them.

    \b
    Example:  specpipe serve --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.cli.ending import handle
    from specpipe.serve.address import Address
    from specpipe.serve.keep import Budget, StopRequest, keep_serving
    from specpipe.serve.progress import Patience
    from specpipe.serve.tritonserver import start_server

    if (config_path is None) == (repository is None):
        raise click.UsageError("give --config or --repository, one of them")
    run = load(config_path, workspace) if config_path else None
    models, log = _find_repository(run, repository)
    tls = _find_tls(run, (tls_certificate, tls_key, tls_client_ca))
    address = Address(host, grpc_port, http_port, metrics_port)
    stop = StopRequest()
    handle(stop.repeat)
    start = partial(
        start_server,
        models,
        address,
        log,
        timeout_s=timeout_s,
        give_up=stop.asked.is_set,
        tls=tls,
        show=_show if log_to_stderr else None,
    )
    keep_serving(
        start,
        stop,
        Budget(restarts),
        drain_s,
        on_ready=_print_ready,
        report=say,
        patience=Patience.of(stalled_s),
    )
    say("stopped")


def _print_ready(endpoint: "RunningServer") -> None:
    address = endpoint.address
    ready = {
        "ready": True,
        "grpc": address.grpc,
        "http": address.http,
        "metrics": address.metrics,
        "pid": endpoint.process.pid,
        "log": str(endpoint.log),
    }
    click.echo(json.dumps(ready))


def _find_repository(
    run: "tuple[RunConfig, Workspace] | None", repository: Path | None
) -> tuple[Path, Path]:
    """Return the repository to serve and where the server's output goes."""
    if run is None:
        assert repository is not None
        return repository, Path(tempfile.gettempdir()) / f"specpipe-tritonserver-{os.getpid()}.log"
    from specpipe.run import require_repository

    config, place = run
    require_repository(config, place)
    return place.repository, place.reports / "tritonserver.log"


def _find_tls(
    run: "tuple[RunConfig, Workspace] | None",
    given: "tuple[Path | None, Path | None, Path | None]",
) -> "Tls | None":
    """Return the certificates of the command line, else those of the run, else none."""
    from specpipe.config import find_tls
    from specpipe.serve.guard import Tls

    certificate, key, client_ca = given
    if not any(given):
        files = find_tls(run[0]) if run else None
        return Tls(*files) if files else None
    if certificate is None or key is None:
        raise click.UsageError("--tls-certificate and --tls-key go together")
    return Tls(certificate, key, client_ca)


def _show(text: bytes) -> None:
    click.echo(text, nl=False, err=True)


@click.command()
@click.argument("prompt", required=False)
@optional_config_option("The run that is served; without it the server is asked how it is called.")
@workspace_option
@click.option(
    "--url",
    default="127.0.0.1:8001",
    show_default=True,
    metavar="HOST:PORT",
    callback=require_host_and_port,
    help="The gRPC endpoint.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="A model that takes text, e.g. ensemble; the server's main one if not given.",
)
@click.option("--raw", is_flag=True, help="Send PROMPT as it is, without the chat template.")
@click.option("--stream", is_flag=True, help="Print the answer as it arrives.")
@click.option("--max-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="Sample at this temperature; 0 takes the most likely tokens.",
)
@click.option("--top-k", type=click.IntRange(min=0), help="Sample from the k most likely tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    help="Sample from the most likely tokens of this total mass.",
)
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--stop", "stop_words", multiple=True, help="End after this text; may be repeated.")
@click.option(
    "--num-draft-tokens",
    type=click.IntRange(min=0),
    help="At most so many a step; 0 turns speculation off.",
)
@client_tls_options
@json_option
def generate(
    prompt: str | None,
    config_path: Path | None,
    workspace: Path,
    url: str,
    model: str | None,
    raw: bool,
    stream: bool,
    max_tokens: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop_words: tuple[str, ...],
    num_draft_tokens: int | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    as_json: bool,
) -> None:
    """Send PROMPT, or stdin, to a server and print the answer.

    PROMPT is sent as a user's message, in the model's chat template, if it has one.
    Without --temperature, --top-k and --top-p the most likely tokens are taken.

    \b
    Example:  specpipe generate --config F --stream "What is the capital of France?"
    """
    from specpipe.present import generation_json, generation_text
    from specpipe.repository.description import read_endpoint
    from specpipe.serve.client import Client, Options

    text = _text(prompt)
    endpoint, count = None, None
    if config_path is not None:
        _, place = load(config_path, workspace)
        endpoint = read_endpoint(place.repository)
        if endpoint.tokenizer:
            count = partial(_count, place.repository / endpoint.tokenizer)
    temperature, top_k, top_p = to_upstream(temperature, top_k, top_p)
    options = Options(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_words=stop_words,
        num_draft_tokens=num_draft_tokens,
    )
    tls = client_tls(tls_ca, tls_certificate, tls_key)
    with Client(url, endpoint, count=count, tls=tls) as client:
        chat = not raw and client.endpoint.template is not None
        if not stream:
            answer = client.generate(text, options, model=model, chat=chat)
        else:
            pieces = client.stream(text, options, model=model, chat=chat)
            answer = client.collect(_echo(pieces, quiet=as_json))
    if as_json:
        click.echo(json.dumps(generation_json(answer)))
        return
    click.echo("" if stream else harmless(answer.text))
    say(generation_text(answer))


def _count(tokenizer: Path, text: str) -> int:
    """Return how many tokens a text has."""
    from specpipe.repository.models.tokens import load_tokenizer

    return load_tokenizer(tokenizer).count(text)


def _text(prompt: str | None) -> str:
    """Return the prompt, or stdin; raises ConfigError if its bytes are no text."""
    # What the shell gives in bytes that are no UTF-8 comes as lone surrogates.
    raw = sys.stdin.buffer.read() if prompt is None else prompt.encode(errors="surrogateescape")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is not UTF-8: {error}") from error
    if not text:
        raise ConfigError("the prompt is empty", hint="give PROMPT, or a text on stdin")
    return text


def _echo(pieces: Iterator[Any], *, quiet: bool) -> Iterator[Any]:
    for piece in pieces:
        if not quiet:
            click.echo(harmless(piece.text), nl=False)
        yield piece
