"""Start the server that a repository is for: tritonserver, or a front without Triton."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from specpipe.core.errors import Unsupported
from specpipe.serve.address import Address
from specpipe.serve.front_server import find_program, read_launch, start_front
from specpipe.serve.guard import Tls
from specpipe.serve.log import Show
from specpipe.serve.machine import require_triton
from specpipe.serve.tritonserver import RunningServer, start_server


def require_startable(repository: Path) -> None:
    """Raise Unsupported if the server of a repository cannot be started from here."""
    launch = read_launch(repository)
    if launch is None:
        require_triton(repository)
    else:
        find_program(launch.argv[0], os.environ)


def start_repository(
    repository: Path,
    address: Address,
    log: Path,
    *,
    timeout_s: float | None = None,
    give_up: Callable[[], bool] = lambda: False,
    tls: Tls | None = None,
    show: Show | None = None,
) -> AbstractContextManager[RunningServer]:
    """Serve a repository until the block ends; see `start_server` and `start_front`.

    Raises what they raise, and Unsupported for certificates where the server has no TLS.
    """
    launch = read_launch(repository)
    if launch is None:
        return start_server(
            repository, address, log, timeout_s=timeout_s, give_up=give_up, tls=tls, show=show
        )
    if tls is not None:
        raise Unsupported(
            f"specpipe starts {launch.argv[0]} without TLS",
            hint="leave the certificates out, and encrypt with a proxy before the server",
        )
    address = replace(address, metrics_port=address.http_port)  # it has one port for all
    return start_front(
        repository, launch, address, log, timeout_s=timeout_s, give_up=give_up, show=show
    )
