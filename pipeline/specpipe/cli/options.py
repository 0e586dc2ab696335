"""The options that several commands share."""

from collections.abc import Callable
from pathlib import Path

import click

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
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


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
    helps = {
        "client-ca": "Let in clients that this authority (PEM) certified.",
        "key": "The certificate's private key, PEM.",
        "certificate": "Encrypt gRPC with this certificate (PEM); serving.tls of a run.",
    }
    for name, text in helps.items():
        option = click.option(
            f"--tls-{name}",
            metavar="FILE",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help=text,
        )
        command = option(command)
    return command
