"""Converts errors to Triton's codes, with one sentence each."""

import logging

from specpipe.core.errors import ConfigError, Unsupported

log = logging.getLogger("specpipe")

CODES = frozenset(  # Triton's names of them
    (
        "UNKNOWN",
        "INTERNAL",
        "NOT_FOUND",
        "INVALID_ARG",
        "UNAVAILABLE",
        "UNSUPPORTED",
        "ALREADY_EXISTS",
        "CANCELLED",
    )
)


class Cancelled(Exception):
    """The client has disconnected or cancelled the request."""

    def __str__(self) -> str:
        return "the request was cancelled"


class QueueFull(Exception):
    """The queue is full."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"the server is busy: {waiting} requests are waiting, which is the limit")


class EngineError(Exception):
    """An error message of the engine's process, passed on unchanged."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_KINDS = {
    ConfigError: "INVALID_ARG",
    Unsupported: "UNSUPPORTED",
    QueueFull: "UNAVAILABLE",
    Cancelled: "CANCELLED",
}


def describe(error: Exception) -> tuple[str, str]:
    """Return the name of Triton's code for an error, and the sentence for the client.

    An unexpected error is logged with its traceback.
    """
    if isinstance(error, EngineError):
        return error.code, str(error)
    for kind, code in _KINDS.items():
        if isinstance(error, kind):
            return code, str(error)
    log.error("unexpected error", exc_info=error)
    return "INTERNAL", f"internal error: {type(error).__name__}: {error}"


def spell(code: str, sentence: str) -> str:
    """Return the message of an error: streams carry no separate code."""
    return f"{code}: {sentence}"


def read_message(message: str) -> tuple[str | None, str]:
    """Return code and sentence of a message of `spell`; of others, no code and the message."""
    code, colon, sentence = message.partition(": ")
    return (code, sentence) if colon and code in CODES else (None, message)
