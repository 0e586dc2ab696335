"""The engine's side of its connections to the text models: their requests, and the answers.

The scheduler's thread adds news and calls `flush` after every round, so a round costs one line per
text model. It never waits: a text model that reads slowly gets a thread that waits for it, and is
dropped with all its requests if it stops reading. Knows nothing of Triton.
"""

import contextlib
import select
import socket
import threading
from dataclasses import dataclass, field

from specpipe.core.contracts import Logits
from specpipe.core.errors import ConfigError
from specpipe.runtime.exchange import (
    CONNECTION,
    Counters,
    Heartbeat,
    News,
    dump_heartbeat,
    dump_news,
    error_news,
    step_news,
)
from specpipe.runtime.failures import Cancelled, EngineError, describe
from specpipe.runtime.guards import start_thread
from specpipe.speculate.decode import Step

MOST_IN_FLIGHT = 4096  # requests of one connection; the scheduler bounds those of all together
MOST_UNREAD = 1 << 16  # entries that wait for a text model to read
PATIENCE_SECONDS = 10.0  # for a text model to read anything


@dataclass(eq=False)
class Peer:
    """The engine's end of a connection; usable from several threads."""

    connection: socket.socket
    requests: dict[int, "RemoteListener"] = field(default_factory=dict)
    gone: bool = False
    _news: list[News] = field(default_factory=list)
    _unsent: bytes = b""
    _waits: bool = False  # a thread waits until there is room for what is unsent
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, number: int) -> "RemoteListener":
        """Return the listener of a new request; raises what is wrong with its number."""
        if not isinstance(number, int) or number == CONNECTION or number in self.requests:
            raise ConfigError(f"{number!r} is not the number of a new request")
        self.requests[number] = RemoteListener(self, number)
        return self.requests[number]

    def require_room(self) -> None:
        """Raise EngineError UNAVAILABLE if more requests are in flight than there may be."""
        if len(self.requests) > MOST_IN_FLIGHT:
            raise EngineError(
                "UNAVAILABLE",
                f"the server is busy: {MOST_IN_FLIGHT} requests of one model are in flight, "
                "which is the limit",
            )

    def cancel(self, number: int) -> None:
        """Take a request for cancelled; it may have ended before."""
        listener = self.requests.pop(number, None)
        if listener is not None:
            listener.cancelled = True

    def tell(self, news: News) -> None:
        """Add an entry to the line that `flush` sends."""
        with self._lock:
            self._news.append(news)

    def refuse(self, error: Exception) -> None:
        """Send an error that concerns the whole connection."""
        self.tell(error_news(CONNECTION, *describe(error)))
        self.flush()

    def on_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Answer a ping."""
        with self._lock:
            self._unsent += dump_heartbeat(heartbeat)
        self.flush()

    def flush(self) -> None:
        """Send all news in one line, without waiting."""
        if self.gone or not (self._news or self._unsent):
            return
        with self._lock:
            if self._waits:
                if len(self._news) > MOST_UNREAD:
                    self._drop()
            elif not self._send():
                self._wait()

    def close(self) -> None:
        """End the connection; all its requests count as cancelled."""
        with self._lock:
            self._drop()
            self.connection.close()

    def _send(self) -> bool:
        """Send what fits into the socket's buffer; tell whether nothing is left to send."""
        line = self._unsent + (dump_news(self._news) if self._news else b"")
        self._news = []
        try:
            sent = self.connection.send(line, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop()
            return True
        self._unsent = line[sent:]
        return not self._unsent

    def _wait(self) -> None:
        try:
            start_thread(self._send_later)
            self._waits = True
        except EngineError:
            self._drop()

    def _send_later(self) -> None:
        """Send what the other side leaves room for, until nothing is left."""
        poller = select.poll()
        poller.register(self.connection, select.POLLOUT)
        while not self.gone:
            has_room = poller.poll(PATIENCE_SECONDS * 1000)
            with self._lock:
                if not has_room:
                    self._drop()
                elif self._send():
                    self._waits = False
                    return

    def _drop(self) -> None:
        self.gone = True
        self._news, self._unsent = [], b""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)  # wakes whoever reads


@dataclass(eq=False)
class RemoteListener:
    """Adds one request's steps to the news of its connection."""

    peer: Peer
    number: int
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        """Tell whether the text model has cancelled the request or is gone."""
        return self.cancelled or self.peer.gone

    def on_logits(self, rows: Logits) -> None:
        """Drop them: no text model asks for any."""

    def on_step(self, step: Step, counters: Counters) -> None:
        if not self.is_cancelled():
            self.peer.tell(step_news(self.number, step, counters))
        if step.finish is not None:
            self._end()

    def on_stopped(self, counters: Counters) -> None:
        self.on_step(Step((), 0, 0, finish="stop_words"), counters)

    def on_cancelled(self) -> None:
        self.on_error(Cancelled())

    def on_error(self, error: Exception) -> None:
        if not self.is_cancelled():
            self.peer.tell(error_news(self.number, *describe(error)))
        self._end()

    def _end(self) -> None:
        self.peer.requests.pop(self.number, None)
