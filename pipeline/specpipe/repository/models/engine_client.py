"""The callers' end of the engine's socket: a request's steps, and whether the engine moves.

Knows nothing of Triton.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path

from specpipe.repository.models.exchange import (
    PING,
    Heartbeat,
    Progress,
    Request,
    dump,
    load_heartbeat,
    load_progress,
)
from specpipe.repository.models.failures import Cancelled, EngineError
from specpipe.repository.models.rendezvous import peer_uid

PATIENCE_SECONDS = 10.0  # for the engine to take a connection and a request
RETRY_SECONDS = 0.01
READ_BYTES = 1 << 16


def ask_engine(
    path: Path, request: Request, is_cancelled: Callable[[], bool], poll_s: float
) -> Generator[Progress, None, None]:
    """Yield a request's steps, the last with a finish reason; closing the generator cancels it.

    `is_cancelled` is called every `poll_s` seconds or a little more. Raises Cancelled, or the
    EngineError of the engine's process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _send(connection, path, dump(request), PATIENCE_SECONDS)
        for line in _lines(connection, is_cancelled, poll_s):
            progress = load_progress(line)
            yield progress
            if progress.finish is not None:
                return


def ping_engine(path: Path, timeout_s: float) -> Heartbeat:
    """Return the answer of the thread that owns the engine, which answers between two steps.

    Raises EngineError UNAVAILABLE if there is no answer within `timeout_s`: the process has ended
    or is stopped, or the engine is in a call that does not return.
    """
    deadline = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _send(connection, path, PING, timeout_s)

        def is_late() -> bool:
            return time.monotonic() > deadline

        try:
            return load_heartbeat(next(_lines(connection, is_late, min(timeout_s, 0.1))))
        except Cancelled as error:
            raise EngineError(
                "UNAVAILABLE", f"the engine's thread has not answered for {timeout_s:.0f} s"
            ) from error


def _send(connection: socket.socket, path: Path, line: bytes, timeout_s: float) -> None:
    """Connect and send a line, within `timeout_s` seconds each."""
    connection.settimeout(timeout_s)
    try:
        _connect(connection, path, time.monotonic() + timeout_s)
        uid = peer_uid(connection)
        if uid != os.geteuid():
            raise EngineError("UNAVAILABLE", f"the engine's socket {path} is of user {uid}")
        # Whoever is refused before the whole request was sent finds out why by reading.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(line)
    except TimeoutError as error:
        raise EngineError(
            "UNAVAILABLE", f"the engine has not taken the request within {timeout_s:.0f} s"
        ) from error
    except OSError as error:
        raise EngineError("UNAVAILABLE", "the engine is not running") from error


def _connect(connection: socket.socket, path: Path, deadline: float) -> None:
    """Connect; a Unix socket with a timeout fails at once where others wait to be accepted."""
    while True:
        try:
            connection.connect(str(path))
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(RETRY_SECONDS)


def _lines(
    connection: socket.socket, is_cancelled: Callable[[], bool], poll_s: float
) -> Generator[bytes, None, None]:
    connection.settimeout(poll_s)
    rest, asked = b"", time.monotonic()
    while True:
        if time.monotonic() - asked >= poll_s:
            if is_cancelled():
                raise Cancelled
            asked = time.monotonic()
        try:
            data = connection.recv(READ_BYTES)
        except TimeoutError:
            continue
        except OSError:
            data = b""
        if not data:
            raise EngineError("UNAVAILABLE", "the engine ended in the middle of the answer")
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
