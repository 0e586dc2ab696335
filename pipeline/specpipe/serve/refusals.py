"""Converts a server's errors to exceptions: wrong, unsupported, unavailable, or failed."""

from tritonclient.utils import InferenceServerException

from specpipe.core.errors import ConfigError, SpecpipeError, StageFailed, Unavailable, Unsupported
from specpipe.runtime.failures import read_message

BUSY = ("the server is busy", "maximum queue size")  # in the errors of full queues
START = "start one with `specpipe serve --config F`, or give --url"
_PORT = "the gRPC port is 8001 by default; 8000 is HTTP"
_DEAD = "is not healthy"  # Triton's Python backend of a model whose process has ended
_UNLOADED = "has no available versions"  # of a model that Triton knows and does not serve now
_NOT_GRPC = "Failed parsing HTTP/2"
_CLOSED = "Socket closed"  # by a server of HTTP/1, or by one that has just ended
_CAUSES = {  # words of gRPC -> in short
    "Connection refused": "connection refused",
    "Domain name not found": "unknown host name",
    "address lookup failed": "unknown host name",
    "Network is unreachable": "network unreachable",
    "DEADLINE_EXCEEDED": "timeout",
}
# Reported by gRPC about a connection, and never by Triton about a request.
_TRANSPORT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")


def refusal(error: InferenceServerException, url: str, *, answered: bool = False) -> SpecpipeError:
    """Return the exception for an error of the server at `url`.

    `answered`: a part of the answer had arrived. In a stream, errors have no status; specpipe's
    models put it before the message. An error without either was raised by Triton itself: an
    unknown model or tensor.
    """
    code, message = read_message(error.message() or "")
    status = code or str(error.status()).removeprefix("StatusCode.")
    if any(words in message for words in BUSY):
        return Unavailable(message, hint="try again later, or raise serving.max_queue_size")
    if code == "UNAVAILABLE" or any(words in message for words in (_DEAD, _UNLOADED)):
        return Unavailable(
            f"the server at {url} cannot answer: {message}",
            hint="`specpipe serve --restarts N` restarts a server whose engine has stopped",
        )
    if status in ("INVALID_ARG", "INVALID_ARGUMENT", "NOT_FOUND", "None"):
        return ConfigError(f"the server refused the request: {message}")
    if status in ("UNSUPPORTED", "UNIMPLEMENTED"):
        return Unsupported(f"the server refused the request: {message}")
    if code is None and status in _TRANSPORT:
        return disconnection(message, url) if answered else absence(message, url)
    return StageFailed(f"the server failed ({status}): {message}")


def absence(reason: str, url: str) -> Unavailable:
    """Return the error for a server that gave no answer at all; `reason` is gRPC's."""
    if _NOT_GRPC in reason:
        return Unavailable(f"the server at {url} does not speak gRPC", hint=_PORT)
    if _CLOSED in reason:
        return Unavailable(f"the server at {url} closed the connection", hint=f"{START}; {_PORT}")
    cause = next((short for words, short in _CAUSES.items() if words in reason), None)
    return Unavailable(f"no server at {url}{f' ({cause})' if cause else f': {reason}'}", hint=START)


def disconnection(reason: str, url: str) -> Unavailable:
    """Return the error for a server that was lost in the middle of an answer."""
    return Unavailable(
        f"the server at {url} was lost in the middle of the answer: {reason}",
        hint="its log, which `specpipe serve` names, ends with the cause",
    )
