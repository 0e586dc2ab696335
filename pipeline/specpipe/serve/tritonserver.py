"""A tritonserver as a child process: started with the right libraries, awaited, stopped cleanly."""

import contextlib
import ctypes.util
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specpipe.core.endpoint import Model
from specpipe.core.errors import StageFailed, Unsupported
from specpipe.core.paths import require_plain
from specpipe.core.processes import die_with_parent, ended_within
from specpipe.repository.placement import read_placement
from specpipe.runtime.rendezvous import FOLDER, SERVER_PREFIX, socket_path
from specpipe.serve.address import Address, require_free_ports
from specpipe.serve.guard import Guard, Tls
from specpipe.serve.launch import (
    EXIT_SECONDS,
    LOADING_SECONDS,
    ServerLaunch,
    gpu_launch,
    require_gpu_server,
    whole_environment,
)
from specpipe.serve.log import ServerLog, Show, claimed_log, find_cause
from specpipe.serve.machine import find_front, require_models, require_same_machine, require_triton
from specpipe.serve.plain import plain_path
from specpipe.serve.watch import children, describe_end, first_ended, is_ready

STARTING_SECONDS = 120.0
TRITON = "tritonserver"
# Triton's Python backend seldom finds a lock of its shared memory damaged while it starts, and then
# aborts the server (issue 8882 of triton-inference-server/server, open). So it is started again.
DAMAGED_LOCK = "boost::interprocess::lock_exception"
STARTS = 3
# Reading weights from huge pages needs fewer lookups of addresses; ignored before glibc 2.35.
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready."""

    address: Address
    process: "subprocess.Popen[bytes]"
    log: Path
    models: Mapping[int, str] = field(default_factory=dict)  # the processes of its models
    engine_socket: Path | None = None  # of an engine that tells whether it moves: `ping_engine`
    front: Model | None = None  # the model that users call; None: the repository does not say
    encrypted: bool = False  # whether gRPC takes only clients with the right certificates
    program: str = TRITON  # what was started

    @property
    def has_grpc(self) -> bool:
        """Whether it is a tritonserver; any other server has an OpenAI API."""
        return self.program == TRITON

    @property
    def url(self) -> str:
        """The address for clients."""
        return self.address.grpc if self.has_grpc else f"http://{self.address.http}"

    def is_alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.process.poll() is None

    def failure(self) -> str | None:
        """Describe the process that ended by itself; None while the server is whole.

        Without the process of a model, Triton reports that it is ready, and answers with errors.
        """
        code = self.process.poll()
        if code is not None:
            return f"{self.program} {describe_end(code)}"
        ended = first_ended(self.models)
        return f"the process of the model {ended} ended by itself" if ended else None


@contextlib.contextmanager
def start_server(
    repository: Path,
    address: Address,
    log: Path,
    *,
    timeout_s: float | None = None,
    give_up: Callable[[], bool] = lambda: False,
    tls: Tls | None = None,
    show: Show | None = None,
) -> Iterator[RunningServer]:
    """Serve `repository` until the block ends; nothing of the server is left afterwards.

    The block begins when every model is ready, or when `give_up()` returns true. The output goes to
    `log`; while another server writes there, to a file next to it, which the endpoint names. `show`
    gets the output too. Raises ConfigError if `repository` is none or a port is taken, Unsupported
    if no server is installed or the engines are for another machine, StageFailed with the server's
    own words if it does not become ready.
    """
    require_triton(repository)
    require_models(repository)
    require_same_machine(repository)
    require_free_ports(address)
    if tls is not None:
        tls.require_files()
    placement = read_placement(repository)
    if placement is not None:
        require_gpu_server(repository, placement)
    with (
        tempfile.TemporaryDirectory(prefix=SERVER_PREFIX) as folder,
        claimed_log(log, show) as output,
    ):
        log = output.path
        flags = [*address.flags(), *Guard(tls).flags()]
        meeting = socket_path(Path(folder))
        region = f"specpipe{os.getpid()}_{Path(folder).name[-8:]}_"
        served = plain_path(repository, Path(folder))
        if placement is None:
            launch = _cpu_launch(Path(folder), served, flags, region)
        else:
            launch = gpu_launch(served, placement, flags, region, Path(folder))
        waits = LOADING_SECONDS if placement is not None else STARTING_SECONDS
        waits = waits if timeout_s is None else timeout_s
        front = find_front(repository)
        with contextlib.ExitStack() as running:
            for left in reversed(range(STARTS)):
                process = _launched(launch, output)
                running.callback(_end, process, region)
                server = RunningServer(
                    address, process, log, front=front, encrypted=tls is not None
                )
                try:
                    await_ready(server, lambda: is_ready(address), waits, give_up)
                    break
                except StageFailed as error:
                    if not left or DAMAGED_LOCK not in str(error):
                        raise
                running.close()
                output.file.write(b"specpipe: starting tritonserver again\n")
            yield replace(
                server,
                models=children(process.pid),
                engine_socket=meeting if meeting.is_socket() else None,
            )


def _launched(launch: ServerLaunch, output: ServerLog) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        launch.argv,
        env=whole_environment(launch),
        stdin=subprocess.DEVNULL,
        stdout=output.file,
        stderr=output.file,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _end(process: "subprocess.Popen[bytes]", region: str) -> None:
    stop(process, signal.SIGINT, EXIT_SECONDS + 10)
    _remove_shared_memory(region)


@dataclass(frozen=True)
class ServerHome:
    """An assembled server: its binary, and the folders that it is told about."""

    binary: Path
    backends: Path
    caches: Path
    libraries: str


def server_home(folder: Path) -> ServerHome:
    """Lay the server of nvidia-pytriton out with the stub of the running Python version."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise Unsupported(
            "no tritonserver: the package nvidia-pytriton is not installed",
            hint="in a clone of specpipe: pip install -e '.[cpu]'",
        )
    _require_old_numpy()
    package = Path(next(iter(spec.submodule_search_locations)))
    server = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise Unsupported(
            f"nvidia-pytriton has no stub for Python {version}", hint="use Python 3.10 to 3.13"
        )
    _require_libpython(version)
    backend = folder / "backends/python"
    backend.mkdir(parents=True)
    for file in [*(server / "backends/python").iterdir(), stub]:
        (backend / file.name).symlink_to(file)
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    return ServerHome(
        server / "bin/tritonserver", folder / "backends", server / "caches", ":".join(libraries)
    )


def _require_old_numpy() -> None:
    version = importlib.metadata.version("numpy")
    if int(version.split(".")[0]) >= 2:
        raise Unsupported(
            f"numpy {version}: Triton's Python backend in nvidia-pytriton sends empty tensors with "
            "numpy 2, silently",
            hint="pip install 'numpy<2'",
        )


def _require_libpython(version: str) -> None:
    """Refuse a Python without its shared library, which the stub needs (3.13's is in the wheel)."""
    name = f"libpython{version}.so.1.0"
    folder = Path(str(sysconfig.get_config_var("LIBDIR")))
    known = (folder / name).exists() or ctypes.util.find_library(f"python{version}") is not None
    if version != "3.13" and not known:
        raise Unsupported(
            f"{name} is not there; Triton's Python backend needs it",
            hint=f"apt-get install libpython{version}, or use a Python built with --enable-shared",
        )


def _cpu_launch(folder: Path, repository: Path, flags: Sequence[str], region: str) -> ServerLaunch:
    """Return how to start the server of nvidia-pytriton."""
    require_plain(folder)
    home = server_home(folder)
    argv = (
        str(home.binary),
        f"--model-repository={repository}",
        f"--backend-directory={home.backends}",
        f"--cache-directory={home.caches}",
        *flags,
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={region}",
    )
    python = Path(sys.executable).parent
    return ServerLaunch(argv, (*environment(home, python), (FOLDER, str(folder))))


def environment(home: ServerHome, python: Path) -> tuple[tuple[str, str], ...]:
    """Return what the server's environment needs for models in the Python whose `bin` is given.

    The stub runs isolated: its packages are those of the first `python` on the path.
    """
    inherited = os.environ.get("LD_LIBRARY_PATH", "")
    return (
        (TUNABLES, _with_huge_pages(os.environ.get(TUNABLES, ""))),
        ("LD_LIBRARY_PATH", f"{home.libraries}:{inherited}".rstrip(":")),
        ("PATH", f"{python}:{os.environ.get('PATH', '')}"),
        ("VIRTUAL_ENV", str(python.parent)),
    )


def _with_huge_pages(tunables: str) -> str:
    """Have glibc ask for huge pages, unless the user has decided about them."""
    if HUGE_PAGES in tunables:
        return tunables
    return f"{tunables}:{HUGE_PAGES}=1".lstrip(":")


def await_ready(
    server: RunningServer,
    is_up: Callable[[], bool],
    timeout_s: float,
    give_up: Callable[[], bool],
    pause_s: float = 0.05,
) -> None:
    """Wait until `is_up()` or `give_up()`; raises StageFailed if the server ends or is too slow."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if give_up():
            return
        if not server.is_alive():
            raise StageFailed(
                f"serve: {server.program} ended while starting: {find_cause(server.log)}",
                hint=f"its whole output is in {server.log}",
            )
        if is_up():
            return
        time.sleep(pause_s)
    raise StageFailed(
        f"serve: {server.program} was not ready after {timeout_s:.0f} s",
        hint=f"its output is in {server.log}",
    )


def stop(process: "subprocess.Popen[Any]", gently: signal.Signals, seconds: float) -> None:
    """End a server and everything that it started: by the signal `gently`, then by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(gently)
    ended_within(process, seconds)
    with contextlib.suppress(ProcessLookupError):  # what outlives it is of its session
        os.killpg(process.pid, signal.SIGKILL)
    ended_within(process)


def _remove_shared_memory(region: str) -> None:
    for file in Path("/dev/shm").glob(f"{region}*"):
        with contextlib.suppress(OSError):
            file.unlink()


def find_server() -> str | None:
    """Return the tritonserver of this machine, for `doctor`; None if there is none."""
    if importlib.util.find_spec("pytriton") is not None:
        return f"nvidia-pytriton {importlib.metadata.version('nvidia-pytriton')}"
    return shutil.which("tritonserver")
