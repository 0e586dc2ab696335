"""A running server and its clients: `serve generate`."""

import json
import os
import shlex
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
from specpipe.cli.output import harmless, load, run_flags, say, suggest
from specpipe.cli.sampling import to_upstream
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    from specpipe.config.run_config import RunConfig
    from specpipe.core.artifacts import Workspace
    from specpipe.serve.guard import Tls
    from specpipe.serve.tritonserver import RunningServer

DEFAULT_URL = "127.0.0.1:8001"


@click.command()
@optional_config_option("YAML file of the run. Its repository must be built and up to date.")
@workspace_option
@click.option(
    "--repository",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Serve this packaged repository instead of the run's own.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.IntRange(min=1),
    help="Timeout for loading the models, in seconds. Default: 120 on CPUs, 1800 on GPUs.",
)
@click.option(
    "--drain",
    "drain_s",
    metavar="S",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Time for in-flight requests to finish when the server is stopped, in seconds.",
)
@click.option(
    "--restarts",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Restart a server that crashed or hangs, at most N times per hour.",
)
@click.option(
    "--stall-timeout",
    "stalled_s",
    metavar="S",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="Time without progress after which the server counts as hung, in seconds.",
)
@click.option(
    "--log-to-stderr", is_flag=True, help="Also print the server's log on stderr, for containers."
)
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

    Prints one JSON line on stdout each time all models are ready. On Ctrl-C, SIGTERM or SIGHUP the
    server finishes in-flight requests first, and the exit code is 0. Press Ctrl-C again to stop at
    once.

    \b
    Example:  specpipe serve --config model_configs/smollm2-135m_hybrid.yaml
    """
    from specpipe.cli.ending import handle
    from specpipe.serve.address import Address
    from specpipe.serve.keep import Budget, StopRequest, keep_serving
    from specpipe.serve.progress import Patience
    from specpipe.serve.tritonserver import start_server

    if (config_path is None) == (repository is None):
        raise click.UsageError("give either --config or --repository")
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
        on_ready=partial(
            _print_ready, generate_command(config_path, workspace, address.grpc, tls), as_json
        ),
        report=say,
        patience=Patience.of(stalled_s),
    )
    say("server stopped")


def generate_command(config_path: Path | None, workspace: Path, url: str, tls: "Tls | None") -> str:
    """Return the command that sends a prompt to the server; FILE: one that users must name."""
    options = [run_flags(config_path, workspace)] if config_path else []
    if url != DEFAULT_URL:
        options.append(f"--url {shlex.quote(url)}")
    if tls is not None:
        options.append("--tls-ca FILE")
    if tls is not None and tls.client_ca is not None:
        options.append("--tls-certificate FILE --tls-key FILE")
    return " ".join(["specpipe generate", *options, '--stream "What is the capital of France?"'])


def _print_ready(command: str, as_json: bool, endpoint: "RunningServer") -> None:
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
    suggest(command, as_json)


def _find_repository(
    run: "tuple[RunConfig, Workspace] | None", repository: Path | None
) -> tuple[Path, Path]:
    """Return the repository to serve and the path of the server's log."""
    if run is None:
        assert repository is not None
        return repository, Path(tempfile.gettempdir()) / f"specpipe-tritonserver-{os.getpid()}.log"
    from specpipe.run.stages import require_repository

    config, place = run
    require_repository(config, place)
    return place.repository, place.reports / "tritonserver.log"


def _find_tls(
    run: "tuple[RunConfig, Workspace] | None",
    given: "tuple[Path | None, Path | None, Path | None]",
) -> "Tls | None":
    """Return the certificates of the command line, else those of the run, else none."""
    from specpipe.config.run_config import find_tls
    from specpipe.serve.guard import Tls

    certificate, key, client_ca = given
    if not any(given):
        files = find_tls(run[0]) if run else None
        return Tls(*files) if files else None
    if certificate is None or key is None:
        raise click.UsageError("--tls-certificate and --tls-key must be given together")
    return Tls(certificate, key, client_ca)


def _show(text: bytes) -> None:
    click.echo(text, nl=False, err=True)


@click.command()
@click.argument("prompt", required=False)
@optional_config_option(
    "YAML file of the run that is served. Without it, the server describes itself."
)
@workspace_option
@click.option(
    "--url",
    default=DEFAULT_URL,
    show_default=True,
    metavar="HOST:PORT",
    callback=require_host_and_port,
    help="gRPC endpoint of the server.",
)
@click.option(
    "--model",
    metavar="NAME",
    help="Model that takes text, e.g. ensemble. Default: the main model of the server.",
)
@click.option("--raw", is_flag=True, help="Send PROMPT as it is, without the chat template.")
@click.option("--stream", is_flag=True, help="Print the answer while it is generated.")
@click.option(
    "--max-tokens",
    metavar="N",
    default=128,
    show_default=True,
    type=click.IntRange(min=1),
    help="Maximum number of output tokens.",
)
@click.option(
    "--temperature",
    metavar="T",
    type=click.FloatRange(min=0),
    help="Sampling temperature; 0 decodes greedily.",
)
@click.option(
    "--top-k",
    metavar="K",
    type=click.IntRange(min=0),
    help="Sample from the K most likely tokens.",
)
@click.option(
    "--top-p",
    metavar="P",
    type=click.FloatRange(0, 1),
    help="Nucleus sampling: keep the top tokens whose probabilities sum to P.",
)
@click.option(
    "--seed",
    metavar="N",
    type=click.IntRange(min=0),
    help="Seed of the sampling. Equal seeds give equal answers.",
)
@click.option(
    "--stop",
    "stop_words",
    metavar="TEXT",
    multiple=True,
    help="Stop after this text. Can be given several times.",
)
@click.option(
    "--num-draft-tokens",
    metavar="N",
    type=click.IntRange(min=0),
    help="Maximum number of draft tokens per step; 0 turns speculation off.",
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

    PROMPT is sent as a user message in the model's chat template, if the model has one. Decoding is
    greedy unless --temperature, --top-k or --top-p is given.

    \b
    Example:  specpipe generate --config model_configs/smollm2-135m_hybrid.yaml \\
                  --stream "What is the capital of France?"
    """
    from specpipe.cli.present import generation_json, generation_text
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
    from specpipe.runtime.tokens import load_tokenizer

    return load_tokenizer(tokenizer).count(text)


def _text(prompt: str | None) -> str:
    """Return the prompt, or stdin; raises ConfigError if it is empty or not UTF-8."""
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    raw = sys.stdin.buffer.read() if prompt is None else prompt.encode(errors="surrogateescape")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is not UTF-8: {error}") from error
    if not text:
        raise ConfigError("the prompt is empty", hint="give PROMPT, or send a text on stdin")
    return text


def _echo(pieces: Iterator[Any], *, quiet: bool) -> Iterator[Any]:
    for piece in pieces:
        if not quiet:
            click.echo(harmless(piece.text), nl=False)
        yield piece
