"""`specpipe generate`: send a prompt to a server and print the answer."""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from specpipe.cli.options import (
    DEFAULT_URL,
    client_tls,
    client_tls_options,
    json_option,
    optional_config_option,
    require_host_and_port,
    workspace_option,
)
from specpipe.cli.output import harmless, load_config, say
from specpipe.cli.sampling import to_upstream
from specpipe.core.errors import ConfigError


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
    from specpipe.core.artifacts import Workspace
    from specpipe.repository.description import read_endpoint
    from specpipe.serve.client import Client, Options

    text = _text(prompt)
    endpoint, count = None, None
    if config_path is not None:
        place = Workspace(workspace, load_config(config_path).name)
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
        chat = not raw and client.endpoint.chats
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
