"""The options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from specpipe.serve.connect import ClientTls

Command = Callable[..., None]

config_option = click.option(
    "--config",
    "config_path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The run's YAML file, e.g. one of model_configs/*.yaml.",
)


def optional_config_option(purpose: str) -> Callable[[Command], Command]:
    """Return the option of a command that can do without a run; `purpose` is its help."""
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
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where engines/, triton_repo/ and reports/ are; the working directory if not given.",
)
JSON = "specpipe.json"  # key of a context's `meta`: whether the command prints JSON


def _remember(context: click.Context, option: click.Parameter, value: bool) -> bool:
    context.meta[JSON] = value
    return value


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_remember, help="Print JSON on stdout."
)


costs_option = click.option(
    "--cost-model",
    "costs",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Price steps by this JSON file, from another machine, not by timing this one.",
)


gpu_option = click.option(
    "--gpu",
    metavar="NAME",
    help="Price steps by an estimate for this GPU, e.g. H100-SXM; a run for a GPU has its own.",
)


def require_host_and_port(
    context: click.Context, option: click.Parameter, value: str | None
) -> str | None:
    """Refuse what is not HOST:PORT: a gRPC endpoint has no scheme."""
    from specpipe.serve.address import split_host_and_port

    if value is not None and split_host_and_port(value) is None:
        raise click.BadParameter(
            f"{value!r} is not HOST:PORT of a gRPC endpoint, e.g. 127.0.0.1:8001 or [::1]:8001"
        )
    return value


def port_options(command: Command) -> Command:
    """Add the options that say where a server listens."""
    for flag, default in (("metrics", 8002), ("http", 8000), ("grpc", 8001)):
        command = click.option(
            f"--{flag}-port", default=default, show_default=True, type=click.IntRange(1, 65535)
        )(command)
    return click.option(
        "--host", default="127.0.0.1", show_default=True, help="Listen on this address only."
    )(command)


def tls_options(command: Command) -> Command:
    """Add the options that encrypt the gRPC endpoint, which a run's config may hold as well."""
    return _file_options(
        command,
        {
            "tls-certificate": "Encrypt gRPC with this certificate (PEM); serving.tls of a run.",
            "tls-key": "The certificate's private key, PEM.",
            "tls-client-ca": "Let in clients that this authority (PEM) certified.",
        },
    )


def client_tls_options(command: Command) -> Command:
    """Add the options of a client of an encrypted endpoint."""
    return _file_options(
        command,
        {
            "tls-ca": "Encrypt, and trust servers that this authority (PEM) certified.",
            "tls-certificate": "With --tls-ca: the certificate (PEM) to show to the server.",
            "tls-key": "With --tls-ca: the certificate's private key, PEM.",
        },
    )


def _file_options(command: Command, helps: dict[str, str]) -> Command:
    for name, text in reversed(helps.items()):
        kind = click.Path(path_type=Path, exists=True, dir_okay=False)
        command = click.option(f"--{name}", metavar="FILE", type=kind, help=text)(command)
    return command


def client_tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "ClientTls | None":
    """Return what the options of a client say; None: not encrypted."""
    from specpipe.serve.connect import ClientTls

    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together")
    if ca is None:
        if certificate is not None:
            raise click.UsageError("--tls-certificate goes with --tls-ca")
        return None
    return ClientTls(ca, certificate, key)
