"""From the text models to the engine's process and back: one Unix socket connection a request.

Triton's own way, calls of one model by another (BLS), is not used: with several decoupled calls at
a time tritonserver 2.51 deadlocks, and it loses the codes of errors and the client's cancellation.
Here closing the connection is the cancellation. Knows nothing of Triton.
"""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.repository.models.exchange import (
    Counters,
    Progress,
    Request,
    dump,
    load_progress,
    load_request,
)
from specpipe.repository.models.failures import Cancelled, EngineError, describe
from specpipe.speculate.decode import Step

PATIENCE_SECONDS = 10  # for a request to arrive once its connection is open
READ_BYTES = 1 << 16


def socket_path(server_pid: int) -> Path:
    """Return where the engine of a tritonserver listens; its models are all its children."""
    return Path(tempfile.gettempdir()) / f"specpipe-{server_pid}.sock"


@dataclass
class RemoteListener:
    """Sends one request's steps to the text model that asked for them."""

    connection: socket.socket

    def is_cancelled(self) -> bool:
        """Tell whether the other side has closed the connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def on_step(self, step: Step, counters: Counters) -> None:
        self._send(dump(Progress(step.tokens, step.log_probs, step.finish, counters)))
        if step.finish is not None:
            self.connection.close()

    def on_stopped(self, counters: Counters) -> None:
        self.on_step(Step((), 0, 0, finish="stop_words"), counters)

    def on_cancelled(self) -> None:
        self.connection.close()

    def on_error(self, error: Exception) -> None:
        self._send(dump(EngineError(*describe(error))))
        self.connection.close()

    def _send(self, line: bytes) -> None:
        """Send without waiting, because the engine's thread is here.

        Whoever leaves a whole socket buffer of answers unread is taken for gone.
        """
        try:
            complete = self.connection.send(line, socket.MSG_DONTWAIT) == len(line)
        except OSError:
            complete = False
        if not complete:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class EngineSocket:
    """The engine's end; `submit` is called in a thread of each request, its errors are answered."""

    path: Path
    submit: Callable[[Request, RemoteListener], None]
    _socket: socket.socket = field(init=False)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        """Begin to listen, for this user only."""
        self.path.unlink(missing_ok=True)  # of a server that was killed
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o600)
        self._socket.listen(128)
        self._thread = threading.Thread(target=self._accept, name="channel", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; requests that are under way are not touched."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(connection,), daemon=True).start()

    def _take(self, connection: socket.socket) -> None:
        listener = RemoteListener(connection)
        try:
            connection.settimeout(PATIENCE_SECONDS)
            with connection.makefile("rb") as lines:
                line = lines.readline()
            connection.settimeout(None)
            self.submit(load_request(line), listener)
        except Exception as error:
            listener.on_error(error)


def ask_engine(
    path: Path, request: Request, is_cancelled: Callable[[], bool], poll_s: float
) -> Generator[Progress, None, None]:
    """Yield a request's steps, the last with a finish reason; closing the generator cancels it.

    `is_cancelled` is asked every `poll_s` seconds or a little more. Raises Cancelled, or the
    EngineError of the engine's process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(path))
            connection.sendall(dump(request))
        except OSError as error:
            raise EngineError("UNAVAILABLE", "the engine is not running") from error
        for line in _lines(connection, is_cancelled, poll_s):
            progress = load_progress(line)
            yield progress
            if progress.finish is not None:
                return


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
