"""`specpipe chat`: talk to a server, in a terminal or through a pipe."""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from specpipe.cli.ending import Terminated
from specpipe.cli.options import json_option
from specpipe.cli.output import echo_pieces, say
from specpipe.cli.request_options import (
    OpenClient,
    conversation_options,
    decoded,
    decoding_options,
    server_options,
)
from specpipe.core.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from specpipe.core.conversation import Conversation
    from specpipe.serve.client import Options
    from specpipe.serve.dialogue import Dialogue

_EXIT, _RESET = "/exit", "/reset"


@click.command()
@server_options
@conversation_options
@decoding_options(max_tokens=256)
@json_option
def chat(
    open_client: OpenClient,
    model: str | None,
    begun: "Conversation",
    options: "Options",
    as_json: bool,
) -> None:
    """Talk to a server. Every line of stdin is a message; answers are streamed.

    After each answer, its speed and its accepted draft tokens are printed on stderr. In a terminal,
    Ctrl-C ends an answer, which stays in the conversation, and Ctrl-D or /exit the chat. /reset
    begins again. With --json, every answer is one line of JSON.

    \b
    Example:  specpipe chat --system "Answer in one sentence."
    """
    from specpipe.serve.dialogue import Dialogue

    terminal = sys.stdin.isatty() and not as_json
    with open_client() as client:
        dialogue = Dialogue(client, options, model, begun)
        for text in _from_terminal() if terminal else _from_pipe():
            if text == _EXIT:
                return
            if text == _RESET:
                dialogue.reset()
                continue
            _answer(dialogue, text, terminal=terminal, as_json=as_json)


def _answer(dialogue: "Dialogue", text: str, *, terminal: bool, as_json: bool) -> None:
    """Print the answer to a message; in a terminal, an interrupt or a refusal ends only that."""
    from specpipe.cli.present import generation_json, generation_text

    try:
        answer = dialogue.client.collect(echo_pieces(dialogue.say(text), quiet=as_json))
    except Terminated:
        raise
    except KeyboardInterrupt:
        if not terminal:
            raise
        click.echo("")
        say("stopped")
    except (ConfigError, Unsupported) as error:
        if not terminal:
            raise
        say(f"error: {error}")
    else:
        click.echo(json.dumps(generation_json(answer)) if as_json else "")
        if not as_json:
            say(generation_text(answer))


def _from_pipe() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        text = decoded(line, f"line {number} of stdin").strip()
        if text:
            yield text


def _from_terminal() -> Iterator[str]:
    """Yield lines until the end of input; Ctrl-C discards a line."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # keys of `input`: history, cursor
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            click.echo("")
            return
        except Terminated:
            raise
        except KeyboardInterrupt:
            click.echo("")
            continue
        if text:
            yield text
