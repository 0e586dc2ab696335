"""The options of commands that send requests: which server, and how it decodes."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specpipe.cli.options import (
    Command,
    client_key_option,
    client_tls,
    client_tls_options,
    optional_config_option,
    read_key,
    url_option,
    workspace_option,
)
from specpipe.cli.output import load_config
from specpipe.cli.sampling import to_upstream
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    from specpipe.core.conversation import Conversation
    from specpipe.core.guide import Guide
    from specpipe.serve.client import Client, ClientTls, Options

OpenClient = Callable[[], "Client"]

_NUMBERS: tuple[tuple[str, str, Any, str], ...] = (
    ("temperature", "T", click.FloatRange(min=0), "Sampling temperature; 0 decodes greedily."),
    ("top-k", "K", click.IntRange(min=0), "Sample from the K most likely tokens."),
    (
        "top-p",
        "P",
        click.FloatRange(0, 1),
        "Nucleus sampling: keep the top tokens whose probabilities sum to P.",
    ),
    (
        "seed",
        "N",
        click.IntRange(min=0),
        "Seed of the sampling. Equal seeds give equal answers.",
    ),
)


def server_options(command: Command) -> Command:
    """Add the options that name a server; the command is called with `open_client` and `model`."""

    @functools.wraps(command)
    def called(
        config_path: Path | None,
        workspace: Path,
        url: str,
        tls_ca: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        api_key_file: Path | None,
        **others: Any,
    ) -> None:
        tls, key = client_tls(tls_ca, tls_certificate, tls_key), read_key(api_key_file)
        command(open_client=lambda: _open_client(config_path, workspace, url, tls, key), **others)

    return _each(
        called,
        optional_config_option(
            "YAML file of the run that is served. Without it, the server describes itself."
        ),
        workspace_option,
        functools.partial(url_option, any_api=True),
        click.option(
            "--model",
            metavar="NAME",
            help="Model that takes text, e.g. ensemble. Default: the main model of the server.",
        ),
        client_tls_options,
        client_key_option,
    )


def decoding_options(max_tokens: int) -> Callable[[Command], Command]:
    """Return what adds the options of decoding; the command is called with `options`.

    `max_tokens` is the default of the option of that name.
    """

    def add(command: Command) -> Command:
        @functools.wraps(command)
        def called(
            max_tokens: int,
            temperature: float | None,
            top_k: int | None,
            top_p: float | None,
            seed: int | None,
            stop_words: tuple[str, ...],
            num_draft_tokens: int | None,
            **others: Any,
        ) -> None:
            from specpipe.serve.client import Options

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
            command(options=options, **others)

        return _each(called, _max_tokens_option(max_tokens), *_numbers(), *_limits())

    return add


def guide_options(command: Command) -> Command:
    """Add what constrains answers, as `guide` of the `options` of a decoding command."""

    @functools.wraps(command)
    def called(
        options: "Options",
        json_schema: Path | None,
        regex: str | None,
        grammar: Path | None,
        **others: Any,
    ) -> None:
        command(options=replace(options, guide=_guide(json_schema, regex, grammar)), **others)

    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    return _each(
        called,
        click.option(
            "--json-schema",
            metavar="FILE",
            type=file,
            help="JSON schema that the answer must match.",
        ),
        click.option(
            "--regex", metavar="EXPR", help="Regular expression that the whole answer must match."
        ),
        click.option(
            "--grammar",
            metavar="FILE",
            type=file,
            help="Grammar that the answer must match, in EBNF (GBNF) or Lark.",
        ),
    )


def _guide(json_schema: Path | None, regex: str | None, grammar: Path | None) -> "Guide | None":
    """Return the guide of a command line; raises UsageError for more than one."""
    from specpipe.core.guide import guide_of

    given: dict[str, str | None] = {
        "json_schema": _read(json_schema),
        "regex": None if regex is None else utf8(regex, "--regex"),
        "ebnf_grammar": _read(grammar),
    }
    found = [(kind, text) for kind, text in given.items() if text is not None]
    if len(found) > 1:
        raise click.UsageError("--json-schema, --regex and --grammar exclude each other")
    return guide_of(*found[0]) if found else None


def _read(file: Path | None) -> str | None:
    return None if file is None else decoded(file.read_bytes(), str(file))


def conversation_options(command: Command) -> Command:
    """Add `--system` and `--messages`; the command is called with `begun`, a conversation."""

    @functools.wraps(command)
    def called(system: str | None, messages: Path | None, **others: Any) -> None:
        command(begun=_read_conversation(system, messages), **others)

    return _each(
        called,
        click.option("--system", metavar="TEXT", help="System message before the others."),
        click.option(
            "--messages",
            metavar="FILE",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="JSON file of the conversation so far: a list of messages, or an object with "
            "messages, tools and more.",
        ),
    )


def utf8(value: str, name: str) -> str:
    """Return a text of the command line; raises ConfigError if it is not UTF-8."""
    # Bytes of the command line that are not UTF-8 arrive as lone surrogates.
    return decoded(value.encode(errors="surrogateescape"), name)


def decoded(raw: bytes, name: str) -> str:
    """Return bytes as text; raises ConfigError if they are not UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8: {error}") from error


def _each(command: Command, *options: Callable[[Command], Command]) -> Command:
    """Add options to a command, in the order in which its help lists them."""
    for option in reversed(options):
        command = option(command)
    return command


def _max_tokens_option(default: int) -> Callable[[Command], Command]:
    return click.option(
        "--max-tokens",
        metavar="N",
        default=default,
        show_default=True,
        type=click.IntRange(min=1),
        help="Maximum number of output tokens.",
    )


def _numbers() -> list[Callable[[Command], Command]]:
    return [
        click.option(f"--{name}", metavar=metavar, type=kind, help=text)
        for name, metavar, kind, text in _NUMBERS
    ]


def _limits() -> list[Callable[[Command], Command]]:
    return [
        click.option(
            "--stop",
            "stop_words",
            metavar="TEXT",
            multiple=True,
            help="Stop after this text. Can be given several times.",
        ),
        click.option(
            "--num-draft-tokens",
            metavar="N",
            type=click.IntRange(min=0),
            help="Maximum number of draft tokens per step; 0 turns speculation off.",
        ),
    ]


def _open_client(
    config_path: Path | None,
    workspace: Path,
    url: str,
    tls: "ClientTls | None",
    key: str | None,
) -> "Client":
    """Return a client; raises ConfigError if the server serves another run than the config's."""
    from specpipe.core.artifacts import Workspace
    from specpipe.repository.description import read_endpoint
    from specpipe.serve.client import Client
    from specpipe.serve.description import require_same_repository

    if config_path is None:
        return Client(url, tls=tls, key=key)
    repository = Workspace(workspace, load_config(config_path).name).repository
    endpoint = read_endpoint(repository)
    require_same_repository(url, repository, tls)
    tokenizer = repository / endpoint.tokenizer
    count = functools.partial(_count, tokenizer) if endpoint.tokenizer else None
    return Client(url, endpoint, count=count, tls=tls, key=key)


def _count(tokenizer: Path, text: str) -> int:
    """Return how many tokens a text has; the tokenizer is loaded only if that is asked."""
    from specpipe.runtime.tokens import load_tokenizer

    return load_tokenizer(tokenizer).count(text)


def _read_conversation(system: str | None, file: Path | None) -> "Conversation":
    """Return the conversation of a file after a system message; empty if none is given."""
    from specpipe.core.conversation import Conversation, load_conversation

    begun = Conversation(())
    if file is not None:
        begun = load_conversation(decoded(file.read_bytes(), str(file)), str(file))
    if system is None:
        return begun
    if begun.messages and begun.messages[0]["role"] == "system":
        raise ConfigError(
            f"{file} begins with a system message", hint="leave out --system, or remove it there"
        )
    return begun.after_system(utf8(system, "--system"))
