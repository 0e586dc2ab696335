"""The options of `specpipe bench`: counts, precisions, and the server that is measured."""

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import (
    Command,
    client_key_option,
    client_tls,
    client_tls_options,
    read_key,
    require_address,
)

if TYPE_CHECKING:
    from specpipe.bench.served import Remote

# The tables of `bench/`, which are not imported for `--help`; a test compares them.
PRECISIONS = ("float32", "bfloat16", "int8", "int8-float32", "int4")
KINDS = (
    "whole", "streamed", "long", "refused", "garbage", "half-open", "http-disconnect",
    "grpc-cancel",
)  # fmt: skip

precision_option = click.option(
    "--precision",
    "precisions",
    metavar="NAME",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help=f"Measure this precision instead of the run's: {', '.join(PRECISIONS)}. Can be given "
    "several times.",
)


def count_option(
    flag: str, default: int, text: str, least: int = 1
) -> Callable[[Command], Command]:
    """Return an option for a number that is at least `least`."""
    return click.option(
        flag,
        metavar="N",
        default=default,
        show_default=True,
        type=click.IntRange(min=least),
        help=text,
    )


def streams_option(default: tuple[int, ...], text: str) -> Callable[[Command], Command]:
    """Return the option for numbers of answers that are decoded at the same time."""
    return click.option(
        "--streams",
        metavar="N",
        multiple=True,
        default=default,
        show_default=True,
        type=click.IntRange(min=1),
        help=text,
    )


def prompts_option(text: str) -> Callable[[Command], Command]:
    """Return the option for files of prompts; `text` ends its help."""
    return click.option(
        "--prompts",
        "files",
        metavar="FILE",
        multiple=True,
        type=click.Path(path_type=Path),
        help='JSON lines with a "prompt". Default: validate.prompts of the run, else built-in '
        f"ones. {text}",
    )


def remote_options(command: Command) -> Command:
    """Add the options of a server that runs already; the command gets them as `remote`."""

    @wraps(command)
    def packed(
        *,
        url: str | None,
        tls_ca: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        api_key_file: Path | None,
        **rest: Any,
    ) -> None:
        tls, key = client_tls(tls_ca, tls_certificate, tls_key), read_key(api_key_file)
        for option, value in (("--tls-ca", tls), ("--api-key-file", key)):
            if value is not None and url is None:
                raise click.UsageError(f"{option} needs --url")
        command(remote=_remote(url, tls, key), **rest)

    url_option = click.option(
        "--url",
        metavar="ADDRESS",
        callback=require_address,
        help="Measure this running server of the run: HOST:PORT of gRPC, or http://HOST:PORT of an "
        "OpenAI API. Default: start one.",
    )
    return url_option(client_tls_options(client_key_option(packed)))


def _remote(url: str | None, tls: Any, key: str | None) -> "Remote | None":
    if url is None:
        return None
    from specpipe.bench.served import Remote

    return Remote(url, tls, key)


def without_url(reason: str) -> Callable[[Command], Command]:
    """Return an option `--url` that is refused with the reason; no help shows it."""

    def refuse(context: click.Context, option: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"bench {context.info_name} takes no --url: {reason}")

    return click.option("--url", hidden=True, expose_value=False, callback=refuse)


def require_one(configs: Sequence[Path], remote: "Remote | None", more: Sequence[str] = ()) -> None:
    """Refuse several runs, and other precisions, if one running server is measured."""
    if remote is not None and (len(configs) > 1 or more):
        raise click.UsageError("--url is the server of one run: give one CONFIG, no --precision")
