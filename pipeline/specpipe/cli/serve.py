"""`specpipe serve`: a running server for a packaged repository."""

import json
import os
import shlex
import tempfile
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import (
    DEFAULT_URL,
    front_options,
    json_option,
    optional_config_option,
    port_options,
    tls_options,
    workspace_option,
)
from specpipe.cli.output import load, run_flags, say, suggest

if TYPE_CHECKING:
    from specpipe.openai.server import FrontAddress
    from specpipe.run.run import Run
    from specpipe.serve.address import Address
    from specpipe.serve.guard import Tls
    from specpipe.serve.tritonserver import RunningServer


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
    "--openai-port",
    metavar="PORT",
    type=click.IntRange(1, 65535),
    help="Also serve the OpenAI API on this port.",
)
@front_options
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
    openai_port: int | None,
    served_model_name: str | None,
    api_key_file: Path | None,
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
    if openai_port is not None:  # before gRPC is imported: it would warn of each server's start
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from specpipe.cli.ending import handle
    from specpipe.serve.address import Address
    from specpipe.serve.keep import RestartBudget, StopRequest, keep_serving
    from specpipe.serve.progress import Patience
    from specpipe.serve.start import start_repository

    if (config_path is None) == (repository is None):
        raise click.UsageError("give either --config or --repository")
    run = load(config_path, workspace) if config_path else None
    models, log = _find_repository(run, repository)
    tls = _find_tls(run, (tls_certificate, tls_key, tls_client_ca))
    address = Address(host, grpc_port, http_port, metrics_port)
    stop = StopRequest()
    handle(stop.repeat)
    start = partial(
        start_repository,
        models,
        address,
        log,
        timeout_s=timeout_s,
        give_up=stop.asked.is_set,
        tls=tls,
        show=_show if log_to_stderr else None,
    )
    front = _front_address(host, openai_port, tls)
    name = served_model_name or models.resolve().name
    with _front(front, address, name, api_key_file, models):
        keep_serving(
            start,
            stop,
            RestartBudget(restarts),
            drain_s,
            on_ready=partial(
                print_ready,
                generate_command(config_path, workspace, _client_url(models, address), tls),
                as_json,
                front,
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


def _client_url(repository: Path, address: "Address") -> str:
    """Return the address that clients give: of gRPC, or of a server without Triton."""
    from specpipe.serve.front_server import read_launch

    return address.grpc if read_launch(repository) is None else f"http://{address.http}"


def _front_address(host: str, port: int | None, tls: "Tls | None") -> "FrontAddress | None":
    """Return where the OpenAI front listens; None if it was not requested."""
    if port is None:
        return None
    from specpipe.openai.server import FrontAddress

    if tls is not None:
        raise click.UsageError("--openai-port with TLS: start `specpipe openai --tls-ca` instead")
    return FrontAddress(host, port)


def _front(
    place: "FrontAddress | None",
    server: "Address",
    name: str,
    key_file: Path | None,
    repository: Path,
) -> AbstractContextManager[object]:
    """Return the running OpenAI front, or nothing if none was requested."""
    if place is None:
        return nullcontext()
    from specpipe.cli.openai import open_front
    from specpipe.cli.options import read_key
    from specpipe.openai.app import FrontOptions
    from specpipe.repository.description import read_endpoint

    folder = read_endpoint(repository).tokenizer
    tokenizer = repository / folder if folder else None
    metrics = f"http://{server.metrics}/metrics"
    key = read_key(key_file)
    options = FrontOptions(server.grpc, name, key, None, tokenizer, metrics)
    return open_front(options, place, partial(read_endpoint, repository))


def print_ready(
    command: str, as_json: bool, front: "FrontAddress | None", endpoint: "RunningServer"
) -> None:
    address = endpoint.address
    ready = {
        "ready": True,
        "grpc": address.grpc if endpoint.has_grpc else None,
        "http": address.http,
        "metrics": address.metrics,
        "pid": endpoint.process.pid,
        "log": str(endpoint.log),
        "openai": front.url if front else None if endpoint.has_grpc else endpoint.url,
    }
    click.echo(json.dumps(ready))
    suggest(command, as_json)


def _find_repository(run: "Run | None", repository: Path | None) -> tuple[Path, Path]:
    """Return the repository to serve and the path of the server's log."""
    if run is None:
        assert repository is not None
        return repository, Path(tempfile.gettempdir()) / f"specpipe-tritonserver-{os.getpid()}.log"
    from specpipe.run.stages import require_repository

    require_repository(run)
    return run.workspace.repository, run.workspace.reports / "tritonserver.log"


def _find_tls(
    run: "Run | None",
    given: "tuple[Path | None, Path | None, Path | None]",
) -> "Tls | None":
    """Return the certificates of the command line, else those of the run, else none."""
    from specpipe.config.files import find_tls
    from specpipe.serve.guard import Tls

    certificate, key, client_ca = given
    if not any(given):
        files = find_tls(run.config) if run else None
        return Tls(*files) if files else None
    if certificate is None or key is None:
        raise click.UsageError("--tls-certificate and --tls-key must be given together")
    return Tls(certificate, key, client_ca)


def _show(text: bytes) -> None:
    click.echo(text, nl=False, err=True)
