"""What a server's error means for the caller: wrong, unsupported, unavailable, or failed."""

from tritonclient.utils import InferenceServerException

from specpipe.errors import ConfigError, SpecpipeError, StageFailed, Unavailable, Unsupported
from specpipe.repository.models.failures import read_message

BUSY = ("the server is busy", "maximum queue size")  # in the errors of full queues
START = "start one with `specpipe serve --config F`, or give --url"
_DEAD = "is not healthy"  # Triton's Python backend of a model whose process has ended
# What gRPC reports of a connection, and never Triton of a request.
_TRANSPORT = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN")


def refusal(error: InferenceServerException, url: str, *, answered: bool = False) -> SpecpipeError:
    """Return the error of ours for an error of the server at `url`.

    `answered` tells that a part of the answer had arrived. In a stream, the server's errors come
    without a status; our models put theirs before the message. What has neither was refused by
    Triton itself: an unknown model or tensor.
    """
    code, message = read_message(error.message() or "")
    status = code or str(error.status()).removeprefix("StatusCode.")
    if any(words in message for words in BUSY):
        return Unavailable(message, hint="try again later, or raise serving.max_queue_size")
    if code == "UNAVAILABLE" or _DEAD in message:
        return Unavailable(
            f"the server at {url} cannot answer: {message}",
            hint="`specpipe serve --restarts N` starts a server again whose engine ended",
        )
    if status in ("INVALID_ARG", "INVALID_ARGUMENT", "NOT_FOUND", "None"):
        return ConfigError(f"the server refused the request: {message}")
    if status in ("UNSUPPORTED", "UNIMPLEMENTED"):
        return Unsupported(f"the server refused the request: {message}")
    if code is None and status in _TRANSPORT:
        return disconnection(message, url) if answered else absence(message, url)
    return StageFailed(f"the server failed ({status}): {message}")


def absence(reason: str, url: str) -> Unavailable:
    """Return the error for a server that gave no answer at all."""
    return Unavailable(f"no server answers at {url}: {reason}", hint=START)


def disconnection(reason: str, url: str) -> Unavailable:
    """Return the error for a server that was lost in the middle of an answer."""
    return Unavailable(
        f"the server at {url} was lost in the middle of the answer: {reason}",
        hint="its log, which `specpipe serve` names, ends with the cause",
    )
