"""The engine's end of its socket: one connection per text model, which carries all its requests.

Triton's own way, calls of one model by another (BLS), is not used: with several decoupled calls at
a time tritonserver 2.51 deadlocks, and it loses the codes of errors and the client's cancellation.
Here a text model sends a line that cancels. Knows nothing of Triton.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from specpipe.core.errors import ConfigError
from specpipe.runtime.exchange import Heartbeat, Request, load_call, load_request
from specpipe.runtime.failures import EngineError
from specpipe.runtime.guards import Threads, harmless, start_vital_thread
from specpipe.runtime.remote import Peer, RemoteListener
from specpipe.runtime.rendezvous import make_folder, peer_uid

PATIENCE_SECONDS = 10.0  # for a line to arrive whole; for the first, once its connection is open
READ_BYTES = 1 << 16
ROOM_SECONDS = 1.0  # that a connection waits, unread, while that many are open: a burst is no fault
MOST_CONNECTIONS = 64  # a thread each
PAUSE_SECONDS = 0.05  # after a connection could not be accepted: files may be free again

log = logging.getLogger("specpipe")


@dataclass
class EngineSocket:
    """The engine's end.

    `submit` takes a request and its listener, `probe` whoever wants to know whether the engine
    moves; both are called in a thread of the connection, and their errors are answered. Whoever
    calls the listeners calls `flush` afterwards: until then nothing is sent.
    """

    path: Path
    submit: Callable[[Request, RemoteListener], None]
    probe: Callable[[Callable[[Heartbeat], None]], None]
    most_bytes: int  # of one request
    uid: int = field(default_factory=os.geteuid)  # whose processes may connect
    _made_folder: bool = False
    _closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._threads = Threads(MOST_CONNECTIONS, "connections are open", ROOM_SECONDS)
        self._peers: tuple[Peer, ...] = ()  # replaced, never changed
        self._lock = threading.Lock()

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
        """End; requests in flight count as cancelled, and their text models learn it."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._socket.close()
        for peer in self._peers:
            peer.close()
        self.path.unlink(missing_ok=True)
        if self._made_folder:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def flush(self) -> None:
        """Send every connection its news of the last round."""
        for peer in self._peers:
            peer.flush()

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
        """Read a connection in a thread; refuse it if there are too many."""
        if peer_uid(connection) != self.uid:
            log.error("a process of user %d tried to reach the engine", peer_uid(connection))
            connection.close()
            return
        peer = Peer(connection)
        with self._lock:
            self._peers = (*self._peers, peer)
        try:
            self._threads.start(self._serve, peer)
        except EngineError as error:
            peer.refuse(error)
            self._end(peer)

    def _serve(self, peer: Peer) -> None:
        """Take what arrives until the other side closes or breaks the protocol."""
        try:
            for line in _lines(peer.connection, self.most_bytes):
                self._take(peer, line)
        except Exception as error:
            harmless(peer.refuse, error)
        finally:
            self._end(peer)

    def _end(self, peer: Peer) -> None:
        with self._lock:
            self._peers = tuple(p for p in self._peers if p is not peer)
        peer.close()

    def _take(self, peer: Peer, line: bytes) -> None:
        call = load_call(line)
        if "ping" in call:
            self.probe(peer.on_heartbeat)
        elif "cancel" in call:
            peer.cancel(call["cancel"])
        else:
            listener = peer.begin(call["submit"])
            try:
                peer.require_room()
                self.submit(load_request(call), listener)
            except Exception as error:
                listener.on_error(error)
                peer.flush()


def _lines(connection: socket.socket, most: int) -> Iterator[bytes]:
    """Yield the lines that arrive; raises ConfigError if one is too long, too late or cut off."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    line = bytearray()
    deadline: float | None = time.monotonic() + PATIENCE_SECONDS
    while True:
        piece = _read(connection, poller, deadline)
        if not piece and line:
            raise ConfigError("the connection was closed before the request was complete")
        if not piece:
            return
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line += end
            _check_size(line, most)
            yield bytes(line)
            line.clear()
        line += rest
        _check_size(line, most)
        if ends or deadline is None:
            deadline = time.monotonic() + PATIENCE_SECONDS if line else None


def _read(connection: socket.socket, poller: select.poll, deadline: float | None) -> bytes:
    """Return what arrives until the deadline: b"" if the other side is gone.

    The socket itself has no timeout, because the engine's thread sends on it.
    """
    wait_ms = None if deadline is None else max(1.0, (deadline - time.monotonic()) * 1000)
    if not poller.poll(wait_ms):
        raise ConfigError(f"the request did not arrive within {PATIENCE_SECONDS:.0f} s")
    try:
        return connection.recv(READ_BYTES)
    except OSError:
        return b""


def _check_size(line: bytearray, most: int) -> None:
    if len(line) > most:
        raise ConfigError(f"the request is longer than {most} bytes, which is the limit")
