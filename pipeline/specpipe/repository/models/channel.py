"""The engine's end of its socket: one connection a request, closed when the request has ended.

Triton's own way, calls of one model by another (BLS), is not used: with several decoupled calls at
a time tritonserver 2.51 deadlocks, and it loses the codes of errors and the client's cancellation.
Here closing the connection is the cancellation. Knows nothing of Triton.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.contracts import Logits
from specpipe.errors import ConfigError
from specpipe.repository.models.exchange import (
    PING,
    Counters,
    Heartbeat,
    Progress,
    Request,
    dump,
    load_request,
)
from specpipe.repository.models.failures import EngineError, describe
from specpipe.repository.models.guards import Threads, harmless, start_vital_thread
from specpipe.repository.models.rendezvous import make_folder, peer_uid
from specpipe.speculate.decode import Step

PATIENCE_SECONDS = 10.0  # for a request to arrive whole once its connection is open
READ_BYTES = 1 << 16
ROOM_SECONDS = 1.0  # that a connection waits, unread, while that many arrive: a burst is no fault
MOST_ARRIVING = 64  # connections whose request is being read, a thread each
PAUSE_SECONDS = 0.05  # after a connection could not be accepted: files may be free again

log = logging.getLogger("specpipe")


@dataclass
class RemoteListener:
    """Sends one request's steps to the text model that asked for them."""

    connection: socket.socket

    def is_cancelled(self) -> bool:
        """Tell whether the other side has closed the connection."""
        try:
            return self.connection.recv(READ_BYTES, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def on_logits(self, rows: Logits) -> None:
        """Drop them: no text model asks for any."""

    def on_step(self, step: Step, counters: Counters) -> None:
        self._send(Progress(step.tokens, step.log_probs, step.finish, counters))
        if step.finish is not None:
            self.connection.close()

    def on_stopped(self, counters: Counters) -> None:
        self.on_step(Step((), 0, 0, finish="stop_words"), counters)

    def on_cancelled(self) -> None:
        self.connection.close()

    def on_error(self, error: Exception) -> None:
        try:
            self._send(EngineError(*describe(error)))
        finally:
            self.connection.close()

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Answer whoever wanted to know whether the engine moves."""
        self._send(heartbeat)
        self.connection.close()

    def _send(self, message: Progress | EngineError | Heartbeat) -> None:
        """Send without waiting, because the engine's thread is here.

        Whoever leaves a whole socket buffer of answers unread is taken for gone.
        """
        line = dump(message)
        try:
            complete = self.connection.send(line, socket.MSG_DONTWAIT) == len(line)
        except OSError:
            complete = False
        if not complete:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class EngineSocket:
    """The engine's end.

    `submit` takes a request and its listener, `probe` whoever wants to know whether the engine
    moves; both are called in a thread of the connection, and their errors are answered.
    """

    path: Path
    submit: Callable[[Request, RemoteListener], None]
    probe: Callable[[Callable[[Heartbeat], None]], None]
    most_bytes: int  # of one request
    uid: int = field(default_factory=os.geteuid)  # whose processes may connect
    _made_folder: bool = False
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._threads = Threads(MOST_ARRIVING, "arriving", ROOM_SECONDS)

    def start(self) -> None:
        """Begin to listen; raises ConfigError if others can enter the folder."""
        self._made_folder = make_folder(self.path.parent)
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)
        self._socket.listen(128)
        self._thread = start_vital_thread(self._run, "channel")

    def close(self) -> None:
        """End; requests that are under way are not touched."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._socket.close()
        self.path.unlink(missing_ok=True)
        if self._made_folder:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def _run(self) -> None:
        """Accept until the end; what is missing now, files or threads, may be there later."""
        failed = False
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not failed and not self._closing.is_set():
                    log.error("the engine's socket cannot accept a connection: %s", error)
                failed = True
                self._closing.wait(PAUSE_SECONDS)
            else:
                failed = False
                harmless(self._begin, connection)

    def _begin(self, connection: socket.socket) -> None:
        """Read a connection's request in a thread; refuse it if there are too many."""
        if peer_uid(connection) != self.uid:
            log.error("a process of user %d tried to reach the engine", peer_uid(connection))
            connection.close()
            return
        listener = RemoteListener(connection)
        try:
            self._threads.start(self._take, listener)
        except EngineError as error:
            listener.on_error(error)

    def _take(self, listener: RemoteListener) -> None:
        try:
            line = _read_line(listener.connection, self.most_bytes)
            if line == PING:
                self.probe(listener.on_heartbeat)
            else:
                self.submit(load_request(line), listener)
        except Exception as error:
            harmless(listener.on_error, error)


def _read_line(connection: socket.socket, most: int) -> bytes:
    """Return what arrives up to a line's end; raises ConfigError if it is too long or too late."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    data = b""
    while not data.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            piece = connection.recv(READ_BYTES)
        except TimeoutError:
            raise ConfigError(
                f"the request did not arrive within {PATIENCE_SECONDS:.0f} s"
            ) from None
        if not piece:
            raise ConfigError("the connection was closed before the request was complete")
        data += piece
        if len(data) > most:
            raise ConfigError(f"the request is longer than {most} bytes, which is the limit")
    connection.settimeout(None)
    return data
