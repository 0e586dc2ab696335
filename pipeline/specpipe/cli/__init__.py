"""The command line: parse, call one function, print. Data goes to stdout, progress to stderr.

Each command has a file of its name. A new one is such a file and an entry of `COMMANDS`. `options`,
`output`, `present` and `run_stages` are shared.
Imports stay inside the commands, so that `--help` is instant and needs neither torch nor openvino.

Not here: decisions. A command calls one function of another part and prints its result.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import click

from specpipe import __version__
from specpipe.cli.acceptance import acceptance
from specpipe.cli.bench import bench
from specpipe.cli.build import build
from specpipe.cli.chat import chat
from specpipe.cli.compile import compile_
from specpipe.cli.completion import completion
from specpipe.cli.convert import convert
from specpipe.cli.doctor import doctor
from specpipe.cli.ending import end_quietly, exit_code, terminable
from specpipe.cli.generate import generate
from specpipe.cli.inspect import inspect
from specpipe.cli.openai import openai
from specpipe.cli.options import JSON
from specpipe.cli.output import print_error
from specpipe.cli.package import package
from specpipe.cli.plan import plan
from specpipe.cli.recommend import recommend
from specpipe.cli.report import report
from specpipe.cli.serve import serve
from specpipe.cli.status import status
from specpipe.cli.train import train
from specpipe.cli.tune import tune
from specpipe.cli.validate import validate
from specpipe.core.errors import ConfigError, SpecpipeError, StageFailed

COMMANDS = (
    build,
    convert,
    compile_,
    package,
    status,
    plan,
    serve,
    openai,
    generate,
    chat,
    validate,
    report,
    inspect,
    doctor,
    train,
    tune,
    recommend,
    bench,
    acceptance,
    completion,
)


# Refusals of the machine. Any other OSError is a bug and keeps its traceback.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> str:
    """Describe what the machine refused: which file, or how much room the disks have."""
    why = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        file = error.filename  # a descriptor, in a few calls
        return f"{file if isinstance(file, int) else os.fsdecode(file)}: {why}"
    if error.errno not in _FULL:
        return why
    places = dict.fromkeys((str(Path.cwd()), tempfile.gettempdir()))
    room = ", ".join(f"{shutil.disk_usage(p).free / 2**30:.1f} GiB in {p}" for p in places)
    return f"{why}; free space: {room}"


def usage_error(error: click.UsageError, ctx: click.Context) -> ConfigError:
    """Return an error of click in the form of all errors: one line, lower case, with a hint."""
    message = " ".join(error.format_message().split()).rstrip(".")
    # The parser's own errors have no context.
    command = f"{ctx.command_path} {ctx.invoked_subcommand or ''}".rstrip()
    path = error.ctx.command_path if error.ctx else command
    return ConfigError(f"{message[:1].lower()}{message[1:]}", hint=f"run `{path} --help`")


def _refuse_usage(error: click.UsageError, ctx: click.Context) -> NoReturn:
    """Print a usage error and exit; for a group without a command click prints the help."""
    shows_help = getattr(click.exceptions, "NoArgsIsHelpError", None)
    if shows_help is not None and isinstance(error, shows_help):
        raise error
    print_error(usage_error(error, ctx), ctx)
    ctx.exit(ConfigError.exit_code)


class _Group(click.Group):
    """Turns errors, signals and refusals of the machine into a sentence and an exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[JSON] = "--json" in args  # for errors that precede the command's own options
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            _refuse_usage(error, ctx)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with terminable():
                return super().invoke(ctx)
        except SpecpipeError as error:
            print_error(error, ctx)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            _refuse_usage(error, ctx)
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


@click.group("specpipe", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="specpipe")
def main() -> None:
    """Build, serve and validate a Triton server with speculative decoding.

    \b
    Start here:  specpipe build --config model_configs/smollm2-135m_hybrid.yaml
    Exit codes:  0 success, 1 internal error, 2 invalid config or usage,
                 3 not supported by this backend or machine, 4 a stage failed,
                 5 a gate failed, 6 server unavailable (try again later),
                 129 SIGHUP, 130 Ctrl-C, 141 closed pipe, 143 SIGTERM;
                 `serve` exits with 0 when it is stopped by a signal
    """


for command in COMMANDS:
    main.add_command(command)
