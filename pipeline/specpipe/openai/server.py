"""Runs the front with uvicorn: in a thread, next to a server or before one that runs elsewhere."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn

from specpipe.core.errors import ConfigError, StageFailed
from specpipe.openai.app import Front
from specpipe.serve.address import bracketed, resolve

_STARTING_SECONDS = 30.0
_BACKLOG = 2048
_GOODBYE_SECONDS = 5  # for answers to end once the front is stopped


@dataclass(frozen=True)
class FrontAddress:
    """Where the front listens."""

    host: str = "127.0.0.1"
    port: int = 9000

    @property
    def url(self) -> str:
        """The base URL that OpenAI's clients take."""
        return f"http://{bracketed(self.host)}:{self.port}/v1"


@contextlib.contextmanager
def serve_front(front: Front, address: FrontAddress) -> Iterator[uvicorn.Server]:
    """Serve until the end of the block, in a thread.

    Raises ConfigError if the port is taken, StageFailed if the front does not start.
    """
    with contextlib.closing(_listen(address)) as listener:
        config = uvicorn.Config(
            front.app(),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_GOODBYE_SECONDS,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True, name="openai")
        thread.start()
        try:
            _await_start(server, thread)
            yield server
        finally:
            server.should_exit = True
            thread.join(_STARTING_SECONDS)


def _listen(address: FrontAddress) -> socket.socket:
    """Return a listening socket, so that a taken port is found before anything is started."""
    ip = resolve(address.host)
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ip, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the OpenAI front cannot listen on {bracketed(address.host)}:{address.port}: "
            f"{error.strerror}",
            hint="choose another port with --openai-port",
        ) from error
    return listener


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _STARTING_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise StageFailed("the OpenAI front did not start")
        time.sleep(0.01)
