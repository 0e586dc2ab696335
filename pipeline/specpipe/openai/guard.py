"""What stands before every route: the key, the bound of a body, and disconnected clients."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specpipe.openai.answers import BAD_REQUEST, error_body

T = TypeVar("T")
MOST_BODY_BYTES = 16 * 2**20
_TOO_LARGE, _UNAUTHORIZED = 413, 401
_EVENTS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class ClientDisconnected(Exception):
    """The client closed its connection before it had the whole answer."""


class RequestGuard:
    """Refuses requests without the key, and bodies that are too large, before they are read."""

    def __init__(self, app: ASGIApp, key: str | None, most_bytes: int = MOST_BODY_BYTES) -> None:
        self._app, self._most = app, most_bytes
        self._expected = None if key is None else b"Bearer " + key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401 or 413."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, self._bounded(receive), send)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> JSONResponse | None:
        given = headers.get(b"authorization", b"")
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            return _refuse(_UNAUTHORIZED, "the API key is missing or wrong", "invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            return _refuse(_TOO_LARGE, self._too_large(), "request_too_large")
        return None

    def _too_large(self) -> str:
        return f"the request body is larger than {self._most} bytes"

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that counts: a body in chunks does not announce its length."""
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._most:
                raise HTTPException(_TOO_LARGE, self._too_large())
            return message

        return counted


def _refuse(status: int, message: str, code: str) -> JSONResponse:
    body = error_body(message, "invalid_request_error", code=code)
    return JSONResponse(body, status, headers={"connection": "close"})


class EventStream(StreamingResponse):
    """Server-sent events; the producer is cancelled as soon as the client disconnects.

    Starlette's own response notices a disconnected client only when it next sends, with servers of
    ASGI 2.4 and later.
    """

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_EVENTS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send every event, or stop when the client disconnects."""
        try:
            with contextlib.suppress(ClientDisconnected):
                await unless_disconnected(self.stream_response(send), receive)
        finally:
            close = getattr(self.body_iterator, "aclose", None)
            if close is not None:
                await close()


async def unless_disconnected(work: Awaitable[T], receive: Receive) -> T:
    """Return the result of `work`; the request's body must have been read.

    If the client disconnects before, cancels the work and raises ClientDisconnected.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        for one in (task, leaving):
            one.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request; raises HTTPException if it is none."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(BAD_REQUEST, f"the request body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise HTTPException(BAD_REQUEST, "the request body is not a JSON object")
    return body
