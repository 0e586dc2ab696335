"""The metrics of the front: what it counts itself, followed by those of the server behind it.

The format is Prometheus' text, version 0.0.4.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial

import anyio.to_thread
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specpipe.openai.streaming import DONE
from specpipe.serve.connect import read_text

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models")
MOST_METRICS_BYTES = 8 * 2**20  # of the server's; 100 models have about 1 MiB
_OTHER = "other"  # the label of paths that are no routes, which are too many for a series each
_API = "/v1/"
_CLOSED, _FAILED = 499, 500  # the status of a request that ended without one
_SECONDS = 5.0  # that the server may take
_PREFIX = "specpipe_openai"
_HELP = {
    "requests_total": ("counter", "Requests that have ended, by the status that was sent"),
    "requests_open": ("gauge", "Requests that are being answered"),
    "disconnects_total": ("counter", "Requests whose client disconnected before the answer ended"),
    "broken_streams_total": ("counter", "Streams that ended with an error after their first chunk"),
    "server_metrics_up": ("gauge", "1 if the metrics of the server follow, 0 if it sent none"),
}


@dataclass
class Meters:
    """Counts the requests of one front; all calls are from its event loop."""

    ended: Counter[tuple[str, int]] = field(default_factory=Counter)  # by route and status
    open: Counter[str] = field(default_factory=Counter)
    disconnected: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)  # streams

    def text(self) -> str:
        """Return all series in Prometheus' text format; every route has its series at once."""
        return "".join(f"{line}\n" for line in self._lines())

    async def watch(self, chunks: AsyncGenerator[str, None], route: str) -> AsyncIterator[str]:
        """Yield the chunks of a stream, and count it if it ends in another way than it should."""
        last = ""
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                last = chunk
                yield chunk
        self.broken[route] += last != DONE

    def _lines(self) -> Iterator[str]:
        yield from _about("requests_total")
        for (route, status), count in sorted(self.ended.items()):
            yield f'{_PREFIX}_requests_total{{route="{route}",status="{status}"}} {count}'
        by_route = {
            "requests_open": self.open,
            "disconnects_total": self.disconnected,
            "broken_streams_total": self.broken,
        }
        for name, counts in by_route.items():
            yield from _about(name)
            for route in (*ROUTES, _OTHER):
                yield f'{_PREFIX}_{name}{{route="{route}"}} {counts[route]}'


def _about(name: str) -> tuple[str, str]:
    kind, text = _HELP[name]
    return f"# HELP {_PREFIX}_{name} {text}", f"# TYPE {_PREFIX}_{name} {kind}"


def route_of(path: str) -> str:
    """Return the label of a path: a route, or `other` for all the rest."""
    found = (route for route in ROUTES if path == route or path.startswith(f"{route}/"))
    return next(found, _OTHER)


class Metered:
    """Counts the requests of the API on their way to an application, refused ones too."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it as it ends."""
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            await self._app(scope, receive, send)
            return
        route, exchange = route_of(scope["path"]), _Exchange(receive, send)
        self._meters.open[route] += 1
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            self._meters.open[route] -= 1
            self._meters.disconnected[route] += exchange.disconnected
            self._meters.ended[route, exchange.status] += 1


class _Exchange:
    """The messages of one request: its status, and whether the client stayed to the end."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._status: int | None = None
        self._complete = False
        self.disconnected = False

    @property
    def status(self) -> int:
        """The status that was sent; without one, the reason why there is none."""
        return self._status or (_CLOSED if self.disconnected else _FAILED)

    async def receive(self) -> Message:
        """Pass on what the client sends; after the whole answer, servers report its end too."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._complete:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application sends."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)


class Relay:
    """Reads the metrics of the server behind the front; scrapes at the same time share a read."""

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._reading: asyncio.Future[str | None] | None = None

    async def text(self) -> str:
        """Return the server's metrics, after a series that tells whether there are any."""
        if self._url is None:
            return "# The metrics of the server behind this front: start it with --metrics-url.\n"
        found = await self._shared(self._url)
        lines = (*_about("server_metrics_up"), f"{_PREFIX}_server_metrics_up {int(bool(found))}")
        return "\n".join((*lines, found or ""))

    async def _shared(self, url: str) -> str | None:
        if self._reading is None or self._reading.done():
            read = partial(read_text, url, _SECONDS, MOST_METRICS_BYTES)
            self._reading = asyncio.ensure_future(
                anyio.to_thread.run_sync(read, abandon_on_cancel=True)
            )
        return await asyncio.shield(self._reading)  # others may wait for the same read
