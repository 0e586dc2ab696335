"""The options that several commands share."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    from specpipe.serve.connect import ClientTls

Command = Callable[..., None]
DEFAULT_URL = "127.0.0.1:8001"

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="YAML file of the run, e.g. one of model_configs/*.yaml.",
)


configs_argument = click.argument(
    "configs",
    metavar="CONFIG...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)


def optional_config_option(purpose: str) -> Callable[[Command], Command]:
    """Return the option of a command that does not need a run; `purpose` is its help."""
    return click.option(
        "--config",
        "config_path",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help=purpose,
    )


workspace_option = click.option(
    "--workspace",
    default=".",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of engines/, triton_repo/ and reports/.",
)
JSON = "specpipe.json"  # key of a context's `meta`: true until the command has printed its JSON


def _remember(context: click.Context, option: click.Parameter, value: bool) -> bool:
    context.meta[JSON] = value
    return value


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_remember,
    help="Print the result as JSON on stdout.",
)


container_option = click.option(
    "--in-container",
    is_flag=True,
    help="Run trtllm-build in NVIDIA's container, with docker or podman (backend tensorrt).",
)


costs_option = click.option(
    "--cost-model",
    "costs",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Take step times from this JSON file, measured by `specpipe bench costs` or computed from "
    "data sheets, instead of measuring them here.",
)


gpu_option = click.option(
    "--gpu",
    metavar="NAME",
    help="Estimate step times for this GPU, e.g. H100-SXM. Default: engine.gpu of the run.",
)


streams_option = click.option(
    "--streams",
    metavar="N",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Choose for N sequences that are decoded at the same time.",
)


def require_writable(
    context: click.Context, option: click.Parameter, out: Path | None
) -> Path | None:
    """Refuse a file that cannot be written, before the measurement starts."""
    if out is not None:
        place = next(folder for folder in out.absolute().parents if folder.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise click.BadParameter(
                f"{out} cannot be written: {place} is not a writable directory"
            ) from error
    return out


def require_host_and_port(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """Refuse a value that is not HOST:PORT: a gRPC endpoint has no scheme."""
    from specpipe.serve.address import split_host_and_port

    if value is not None and split_host_and_port(value) is None:
        raise click.BadParameter(
            f"{value!r} is not HOST:PORT of a gRPC endpoint, e.g. 127.0.0.1:8001 or [::1]:8001"
        )
    return value


def require_address(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """Refuse a value that is neither HOST:PORT of gRPC nor the address of an OpenAI API."""
    from specpipe.serve.http.base import is_http, parse_base

    if value is None or not is_http(value):
        return require_host_and_port(context, option, value)
    try:
        parse_base(value)
    except ConfigError as error:
        raise click.BadParameter(error.message) from error
    return value


def require_metrics_url(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """Refuse what is not the address of metrics; the path is /metrics unless it has one."""
    from specpipe.serve.http.base import parse_base

    if value is None:
        return None
    try:
        base = parse_base(value, path="/metrics")
    except ConfigError as error:
        raise click.BadParameter(
            f"{value!r} is no address of metrics, e.g. http://127.0.0.1:8002/metrics"
        ) from error
    return f"{base.scheme}://{base.place}{base.path}"


def url_option(command: Command, *, any_api: bool = False) -> Command:
    """Add the address of a server: of its gRPC endpoint or, with `any_api`, of an OpenAI API."""
    return click.option(
        "--url",
        default=DEFAULT_URL,
        show_default=True,
        metavar="ADDRESS" if any_api else "HOST:PORT",
        callback=require_address if any_api else require_host_and_port,
        help="Server: HOST:PORT of gRPC, or http://HOST:PORT of an OpenAI API."
        if any_api
        else "gRPC endpoint of the server.",
    )(command)


host_option = click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on.",
)


def port_options(command: Command) -> Command:
    """Add the options that set where a server listens."""
    ports = (("metrics", "metrics", 8002), ("http", "HTTP", 8000), ("grpc", "gRPC", 8001))
    for flag, protocol, default in ports:
        command = click.option(
            f"--{flag}-port",
            metavar="PORT",
            default=default,
            show_default=True,
            type=click.IntRange(1, 65535),
            help=f"Port of the {protocol} endpoint.",
        )(command)
    return host_option(command)


def tls_options(command: Command) -> Command:
    """Add the options that encrypt the gRPC endpoint; a run can set them in `serving.tls`."""
    return _file_options(
        command,
        {
            "tls-certificate": "Encrypt gRPC with this certificate (PEM). Default: serving.tls.",
            "tls-key": "Private key of the certificate (PEM).",
            "tls-client-ca": "Accept only clients whose certificate this authority (PEM) signed.",
        },
    )


def front_options(command: Command) -> Command:
    """Add the options of the OpenAI front."""
    command = click.option(
        "--api-key-file",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Require the key in this file from clients of the OpenAI API.",
    )(command)
    return click.option(
        "--served-model-name",
        metavar="NAME",
        help="Name of the model in the OpenAI API. Default: the name of the run.",
    )(command)


def client_tls_options(command: Command) -> Command:
    """Add the options of a client of an encrypted endpoint."""
    return _file_options(
        command,
        {
            "tls-ca": "Encrypt, and trust servers whose certificate this authority (PEM) signed.",
            "tls-certificate": "Client certificate (PEM). Needs --tls-ca.",
            "tls-key": "Private key of the client certificate (PEM). Needs --tls-ca.",
        },
    )


client_key_option = click.option(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Show the key in this file to the server. For an OpenAI API.",
)


def read_key(file: Path | None) -> str | None:
    """Return the key in a file; raises ConfigError if it is empty or has more than one line."""
    if file is None:
        return None
    key = file.read_text(encoding="utf-8").strip()
    if not key or not key.isascii() or len(key.split()) != 1:
        raise ConfigError(f"--api-key-file {file}: must have one key, in ASCII, on one line")
    return key


def _file_options(command: Command, helps: dict[str, str]) -> Command:
    for name, text in reversed(helps.items()):
        kind = click.Path(path_type=Path, exists=True, dir_okay=False)
        command = click.option(f"--{name}", metavar="FILE", type=kind, help=text)(command)
    return command


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "ClientTls | None":
    """Return the TLS options of a client; None if the connection is not encrypted."""
    from specpipe.serve.connect import ClientTls

    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-certificate and --tls-key must be given together")
    if ca is None:
        if certificate is not None:
            raise click.UsageError("--tls-certificate needs --tls-ca")
        return None
    return ClientTls(ca, certificate, key)
