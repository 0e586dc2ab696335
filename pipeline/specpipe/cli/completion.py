"""Completion of commands and options in a shell: `completion`."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_SPECPIPE_COMPLETE"  # where click reads what a shell wants completed


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script for shell completion.

    SHELL is bash, zsh or fish.

    \b
    Example:  specpipe completion bash >> ~/.bashrc
              specpipe completion zsh >> ~/.zshrc
              specpipe completion fish > ~/.config/fish/completions/specpipe.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click knows all of SHELLS
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "specpipe", VARIABLE).source())
