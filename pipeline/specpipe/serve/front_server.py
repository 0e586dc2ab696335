"""A server without Triton as a child process: `vllm serve`, started without a shell.

`SPECPIPE_VLLM` names the environment that has the program: its folder, with `bin/vllm`. Without it
the program of the path is started, or that of `.venv-vllm`, which `scripts/setup vllm` makes.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.processes import die_with_parent
from specpipe.engine.fronts.front import HEALTH
from specpipe.engine.fronts.vllm_serve import LAUNCH
from specpipe.serve.address import Address, bracketed, require_free_ports
from specpipe.serve.connect import read_url
from specpipe.serve.log import Show, claimed_log
from specpipe.serve.tritonserver import RunningServer, await_ready, stop

ENVIRONMENT = "SPECPIPE_VLLM"
OWN_ENVIRONMENT = Path(".venv-vllm")
STARTING_SECONDS = 1800.0  # the program may download the model
EXIT_SECONDS = 20.0


@dataclass(frozen=True)
class FrontLaunch:
    """A program, without the address that it listens on, and its own variables."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


def read_launch(repository: Path) -> FrontLaunch | None:
    """Return the program that serves a repository; None if Triton does.

    Raises ConfigError if the file that names it is damaged.
    """
    file = repository / LAUNCH
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return FrontLaunch(tuple(map(str, values["argv"])), dict(values["env"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{file} is damaged: {error}", hint="run `specpipe package` again"
        ) from error


def find_program(name: str, variables: Mapping[str, str]) -> Path:
    """Return the program of a front; raises Unsupported if it is not installed."""
    if folder := variables.get(ENVIRONMENT):
        found = Path(folder).expanduser() / "bin" / name
        if found.is_file():
            return found.absolute()
        raise Unsupported(
            f"{ENVIRONMENT} is {folder}, and {found} is not there",
            hint="set it to the folder of the environment that has vLLM",
        )
    on_path = shutil.which(name, path=variables.get("PATH"))
    own = OWN_ENVIRONMENT / "bin" / name
    if on_path or own.is_file():
        return Path(on_path or own).absolute()
    raise Unsupported(
        f"{name} is not on the path, so nothing can serve this run here",
        hint=f"run `scripts/setup vllm`, set {ENVIRONMENT} to an environment that has it, or "
        "`specpipe package --deploy`, and give its address: --url http://HOST:8000",
    )


@contextlib.contextmanager
def start_front(
    repository: Path,
    launch: FrontLaunch,
    address: Address,
    log: Path,
    *,
    timeout_s: float | None = None,
    give_up: Callable[[], bool] = lambda: False,
    show: Show | None = None,
) -> Iterator[RunningServer]:
    """Serve `repository` at the HTTP port of `address` until the block ends.

    The block begins when the server answers that it is healthy, or when `give_up()` returns true;
    with it ends the server's whole process group. The output goes to `log`. Raises Unsupported if
    the program is not installed, ConfigError if the port is taken, StageFailed if the server ends
    or is not healthy in time.
    """
    program = find_program(launch.argv[0], os.environ)
    require_free_ports(address)
    health = f"http://{bracketed(address.host)}:{address.http_port}{HEALTH}"
    with claimed_log(log, show) as output:
        process = subprocess.Popen(
            [str(program), *launch.argv[1:], *_listening(address)],
            env=_environment(program, launch.env),
            cwd=repository,
            stdin=subprocess.DEVNULL,
            stdout=output.file,
            stderr=output.file,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        server = RunningServer(address, process, output.path, program=launch.argv[0])
        try:
            waits = STARTING_SECONDS if timeout_s is None else timeout_s
            await_ready(server, lambda: read_url(health, 5) is not None, waits, give_up, 0.2)
            yield server
        finally:
            stop(process, signal.SIGTERM, EXIT_SECONDS)


def _listening(address: Address) -> Sequence[str]:
    return ("--host", address.host, "--port", str(address.http_port))


def _environment(program: Path, own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the server: those of this process, unless a user set them, its own.

    The programs that it starts are those of its environment, and it sends no usage statistics.
    """
    path = f"{program.parent}:{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTUAL_ENV")}
    return {"VLLM_NO_USAGE_STATS": "1", **own, **kept, "PATH": path}
