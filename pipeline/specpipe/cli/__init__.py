"""The command line: parse, call one function, print. Data goes to stdout, progress to stderr.

One file a group of commands; a new command is a function there and a place in `COMMANDS`. Imports
stay inside the commands, so that `--help` is instant and needs neither torch nor openvino.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from specpipe import __version__
from specpipe.cli.ending import end_quietly, exit_code, terminable
from specpipe.cli.improve import recommend, train, tune
from specpipe.cli.judge import doctor, inspect, validate
from specpipe.cli.output import print_error
from specpipe.cli.server import generate, serve
from specpipe.cli.stages import build, compile_, convert, package, plan, status
from specpipe.errors import SpecpipeError, StageFailed

COMMANDS = (
    build,
    convert,
    compile_,
    package,
    status,
    plan,
    serve,
    generate,
    validate,
    inspect,
    doctor,
    train,
    tune,
    recommend,
)


# What the machine refuses; any other OSError is a bug of ours and keeps its traceback.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> str:
    """Say what the machine refused: which file, or on which disks there is how much room."""
    why = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        file = error.filename  # a descriptor, in a few calls
        return f"{file if isinstance(file, int) else os.fsdecode(file)}: {why}"
    if error.errno not in _FULL:
        return why
    places = dict.fromkeys((str(Path.cwd()), tempfile.gettempdir()))
    room = ", ".join(f"{shutil.disk_usage(p).free / 2**30:.1f} GiB in {p}" for p in places)
    return f"{why}; free are {room}"


class _Group(click.Group):
    """Turns our errors, signals and what the machine refuses into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with terminable():
                return super().invoke(ctx)
        except SpecpipeError as error:
            print_error(error, ctx)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt as interrupt:
            click.echo(f"\ninterrupted{f' by {interrupt}' if str(interrupt) else ''}", err=True)
            ctx.exit(exit_code(interrupt))
        except BrokenPipeError:
            ctx.exit(end_quietly())
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            refused = StageFailed(refusal(error))
            print_error(refused, ctx)
            ctx.exit(refused.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="specpipe")
def main() -> None:
    """Turn a Hugging Face checkpoint into a Triton server that decodes speculatively.

    \b
    Start here:  specpipe build --config model_configs/smollm2-135m_hybrid.yaml
    Exit codes:  0 ok, 1 bug, 2 config or usage, 3 unsupported here, 4 stage failed, 5 gate failed,
                 6 server unavailable, 130 Ctrl-C, 143 SIGTERM
    """


for command in COMMANDS:
    main.add_command(command)
