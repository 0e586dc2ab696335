"""Converts HTTP's errors, and those of its transport, to exceptions."""

import http.client
import json
import ssl
from typing import Any

from specpipe.core.errors import ConfigError, SpecpipeError, StageFailed, Unavailable, Unsupported
from specpipe.serve.refusals import disconnection

_LONGEST = 500  # characters of a message
_START = "start the server, or give --url of one that runs"
_BUSY, _UNAUTHORIZED, _NOT_IMPLEMENTED = (429, 502, 503, 504), (401, 403), 501
# In a stream an error has no status, but a type or a code.
_REFUSALS = ("invalid_request_error", "BadRequestError", "NotFoundError")


def status_error(status: int, body: bytes, url: str) -> SpecpipeError:
    """Return the exception for an answer that is not 200."""
    message = error_message(body)
    if status in _UNAUTHORIZED:
        return ConfigError(
            f"the server at {url} refused the key of this client (HTTP {status}): {message}",
            hint="give --api-key-file",
        )
    if status in _BUSY:
        return Unavailable(
            f"the server at {url} cannot answer now (HTTP {status}): {message}",
            hint="try again later",
        )
    if status == _NOT_IMPLEMENTED:
        return Unsupported(f"the server refused the request: {message}")
    if 400 <= status < 500:
        return ConfigError(f"the server refused the request (HTTP {status}): {message}")
    return StageFailed(f"the server failed (HTTP {status}): {message}")


def event_error(event: dict[str, Any]) -> SpecpipeError | None:
    """Return the exception for an event of a stream; None if it is no error."""
    error = event.get("error")
    if error is None and event.get("object") != "error":
        return None
    found = error if isinstance(error, dict) else event
    message = error_message(json.dumps(event).encode())
    code = found.get("code")
    refused = isinstance(code, int) and 400 <= code < 500
    if refused or found.get("type") in _REFUSALS:
        return ConfigError(f"the server refused the request: {message}")
    return StageFailed(f"the server failed in the middle of the answer: {message}")


def error_message(body: bytes) -> str:
    """Return the sentence in the body of an error, in any of the shapes that servers use."""
    text = body.decode("utf-8", errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text[:_LONGEST] or "no message"
    for _ in range(2):  # {"error": {"message": ...}}
        if isinstance(found, dict):
            found = next((found[k] for k in ("error", "message", "detail") if found.get(k)), found)
    return (found if isinstance(found, str) else json.dumps(found))[:_LONGEST]


def transport_error(error: Exception, url: str, *, answered: bool) -> Unavailable:
    """Return the exception for a connection that failed; `answered`: after a part of the answer."""
    reason = str(error) or type(error).__name__
    if answered:
        return disconnection(reason, url)
    if isinstance(error, ssl.SSLError):
        return Unavailable(
            f"no encrypted connection to {url}: {reason}",
            hint="give --tls-ca with the authority that signed its certificate",
        )
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return Unavailable(
            f"the server at {url} does not speak HTTP", hint="an address without http:// is gRPC's"
        )
    if isinstance(error, TimeoutError):
        reason = "it did not answer in time"
    return Unavailable(f"no answer from {url}: {reason}", hint=_START)
