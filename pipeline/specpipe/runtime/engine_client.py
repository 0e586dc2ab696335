"""The callers' end of the engine's socket: requests of one process, and whether the engine moves.

All requests share a connection, which is opened for the first one and again after it was lost. One
thread reads it and has every step taken; the thread of a request sleeps until its answer is
complete. Knows nothing of Triton.
"""

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.runtime.exchange import (
    CONNECTION,
    PING,
    EngineProgress,
    Heartbeat,
    Request,
    dump_cancel,
    dump_submit,
    load_heartbeat,
    load_news,
)
from specpipe.runtime.failures import Cancelled, EngineError
from specpipe.runtime.guards import start_thread
from specpipe.runtime.rendezvous import peer_uid

PATIENCE_SECONDS = 10.0  # for the engine to take a connection and a request
RETRY_SECONDS = 0.01
READ_BYTES = 1 << 16
_TIMEVAL = struct.Struct("ll")  # seconds, microseconds


@dataclass(eq=False)
class _Pending:
    """A request in flight."""

    take: Callable[[EngineProgress], bool]
    done: threading.Event = field(default_factory=threading.Event)
    ended: bool = False  # at the engine
    error: Exception | None = None

    def on_news(self, news: EngineProgress | EngineError) -> None:
        """Have a step taken; after the last one, or an error, wake the request's thread."""
        complete = False
        try:
            self.ended = isinstance(news, EngineError) or news.finish is not None
            if isinstance(news, EngineError):
                raise news
            complete = self.take(news)
        except Exception as error:
            self.error = error
        if complete or self.ended or self.error is not None:
            self.done.set()


@dataclass(eq=False)
class EngineClient:
    """Sends requests to the engine whose socket is `path`; usable from several threads."""

    path: Path
    _connection: "_Connection | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        request: Request,
        take: Callable[[EngineProgress], bool],
        is_cancelled: Callable[[], bool],
        poll_s: float,
    ) -> None:
        """Have every step taken, in another thread, until `take` returns True or the last step.

        `is_cancelled` is called every `poll_s` seconds. Raises Cancelled, the EngineError of the
        engine's process, or what `take` raises. In each of these cases the engine stops decoding.
        """
        pending = _Pending(take)
        with self._lock:
            if self._connection is None or self._connection.lost:
                self._connection = _Connection.open(self.path)
            connection = self._connection
            number = connection.add(pending)
        try:
            connection.send(dump_submit(number, request))
            while not pending.done.wait(poll_s):
                if is_cancelled():
                    raise Cancelled
        finally:
            connection.remove(number)
            if not pending.ended:
                connection.send(dump_cancel(number))
        if pending.error is not None:
            raise pending.error

    def close(self) -> None:
        """Close the connection; requests in flight fail."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()


@dataclass(eq=False)
class _Connection:
    """A connection that was opened, and the requests that use it."""

    socket: socket.socket
    lost: EngineError | None = None  # why the connection is closed; None: it is open
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(CONNECTION + 1))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sending: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(path: Path) -> "_Connection":
        """Connect and start to read; raises EngineError UNAVAILABLE if that is not possible."""
        connection = _Connection(_connect(path, PATIENCE_SECONDS))
        seconds, rest = divmod(PATIENCE_SECONDS, 1)
        limit = _TIMEVAL.pack(int(seconds), int(rest * 1e6))
        connection.socket.settimeout(None)
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            start_thread(connection._read)
        except EngineError:
            connection.socket.close()
            raise
        return connection

    def add(self, pending: _Pending) -> int:
        """Return the number of a new request; it fails at once if the connection was just lost."""
        with self._lock:
            number = next(self._numbers)
            if self.lost is not None:
                pending.on_news(_again(self.lost))
            self._pending[number] = pending
            return number

    def remove(self, number: int) -> None:
        """Forget a request; news of it are dropped from now on."""
        with self._lock:
            self._pending.pop(number, None)

    def send(self, line: bytes) -> None:
        """Send a line; whoever reads learns why the engine has closed the connection."""
        try:
            with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if self.lost is None:
                    self.socket.sendall(line)
        except BlockingIOError:  # a part of the line may be sent: no other may follow
            self.close()
            raise _not_taken(PATIENCE_SECONDS) from None

    def close(self) -> None:
        """End the connection; its thread fails what is in flight."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        """Hand on what arrives, and at the end fail every request that is still in flight."""
        reason = _lost()
        try:
            for line in _lines(self.socket):
                for number, news in load_news(line):
                    if number == CONNECTION and isinstance(news, EngineError):
                        raise news
                    self._hand_on(number, news)
        except EngineError as error:
            reason = error
        finally:
            self._end(reason)

    def _hand_on(self, number: int, news: EngineProgress | EngineError) -> None:
        pending = self._pending.get(number)  # None: cancelled before the engine knew
        if pending is not None and not pending.done.is_set():
            pending.on_news(news)

    def _end(self, reason: EngineError) -> None:
        with self._lock:
            self.lost = reason
            left = [pending for pending in self._pending.values() if not pending.done.is_set()]
        for pending in left:
            pending.on_news(_again(reason))
        self.close()
        with self._sending:
            self.socket.close()


def ping_engine(path: Path, timeout_s: float) -> Heartbeat:
    """Return the answer of the thread that owns the engine, which answers between two steps.

    Raises EngineError UNAVAILABLE if there is no answer within `timeout_s`: the process has ended
    or is stopped, or the engine is in a call that does not return.
    """
    with _connect(path, timeout_s) as connection:
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(PING)
            return load_heartbeat(next(_lines(connection)))
        except TimeoutError as error:
            raise EngineError(
                "UNAVAILABLE", f"the engine's thread has not answered for {timeout_s:.0f} s"
            ) from error


def _connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connection with this timeout; a Unix socket fails at once where others wait."""
    deadline = time.monotonic() + timeout_s
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        while not _is_connected(connection, path):
            if time.monotonic() >= deadline:
                raise _not_taken(timeout_s)
            time.sleep(RETRY_SECONDS)
        uid = peer_uid(connection)
        if uid != os.geteuid():
            raise EngineError("UNAVAILABLE", f"the engine's socket {path} is of user {uid}")
    except OSError as error:
        connection.close()
        raise EngineError("UNAVAILABLE", "the engine is not running") from error
    except EngineError:
        connection.close()
        raise
    return connection


def _is_connected(connection: socket.socket, path: Path) -> bool:
    try:
        connection.connect(str(path))
    except BlockingIOError:  # as many others wait to be accepted as may
        return False
    return True


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Yield the lines that arrive; raises TimeoutError, or EngineError if the engine ends."""
    rest = b""
    while True:
        try:
            data = connection.recv(READ_BYTES)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if not data:
            raise _lost()
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _again(error: EngineError) -> EngineError:
    """Return the error for another thread to raise."""
    return EngineError(error.code, str(error))


def _lost() -> EngineError:
    return EngineError("UNAVAILABLE", "the engine ended in the middle of the answer")


def _not_taken(timeout_s: float) -> EngineError:
    return EngineError(
        "UNAVAILABLE", f"the engine has not taken the request within {timeout_s:.0f} s"
    )
