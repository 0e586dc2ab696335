"""`specpipe generate`: send a prompt to a server and print the answer."""

import json
import sys
from typing import TYPE_CHECKING

import click

from specpipe.cli.options import json_option
from specpipe.cli.output import echo_pieces, harmless, say
from specpipe.cli.request_options import (
    OpenClient,
    conversation_options,
    decoded,
    decoding_options,
    guide_options,
    server_options,
    utf8,
)
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    from specpipe.core.conversation import Conversation
    from specpipe.serve.client import Client, Options


@click.command()
@click.argument("prompt", required=False)
@server_options
@conversation_options
@click.option("--raw", is_flag=True, help="Send PROMPT as it is, without the chat template.")
@click.option("--stream", is_flag=True, help="Print the answer while it is generated.")
@decoding_options(max_tokens=128)
@guide_options
@json_option
def generate(
    prompt: str | None,
    open_client: OpenClient,
    model: str | None,
    begun: "Conversation",
    raw: bool,
    stream: bool,
    options: "Options",
    as_json: bool,
) -> None:
    """Send PROMPT, or stdin, to a server and print the answer.

    PROMPT is sent as a user message in the model's chat template, if the model has one. With
    --messages it is the next message, and may be left out. Decoding is greedy unless --temperature,
    --top-k or --top-p is given.

    \b
    Example:  specpipe generate --config model_configs/smollm2-135m_hybrid.yaml \\
                  --stream "What is the capital of France?"
    """
    from specpipe.cli.present import generation_json, generation_text

    if raw and begun.messages:
        raise click.UsageError("--raw sends one text, without --system and --messages")
    complete = prompt is None and begun.messages[-1:] and begun.messages[-1]["role"] != "system"
    text = "" if complete else _text(prompt)
    with open_client() as client:
        asked = _prompt(client, text, begun, raw=raw)
        if not stream:
            answer = client.generate(asked, options, model=model)
        else:
            pieces = client.stream(asked, options, model=model)
            answer = client.collect(echo_pieces(pieces, quiet=as_json))
    if as_json:
        click.echo(json.dumps(generation_json(answer)))
        return
    click.echo("" if stream else harmless(answer.text))
    say(generation_text(answer))


def _prompt(
    client: "Client", text: str, begun: "Conversation", *, raw: bool
) -> "str | Conversation":
    """Return what is sent: a conversation, unless the model has no chat template."""
    if raw or (not begun.messages and not client.endpoint.chats):
        return text
    return begun.then("user", text) if text else begun


def _text(prompt: str | None) -> str:
    """Return the prompt, or stdin; raises ConfigError if it is empty or not UTF-8."""
    name = "the prompt"
    text = decoded(sys.stdin.buffer.read(), name) if prompt is None else utf8(prompt, name)
    if not text:
        raise ConfigError("the prompt is empty", hint="give PROMPT, or send a text on stdin")
    return text
