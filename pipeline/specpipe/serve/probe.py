"""Cheap requests to a running server, each with a time limit, that show whether it answers."""

import contextlib
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from specpipe.core.endpoint import Model
from specpipe.core.errors import Unavailable
from specpipe.runtime.engine_client import ping_engine
from specpipe.runtime.exchange import PROBE_ID
from specpipe.runtime.failures import EngineError
from specpipe.serve.connect import connect
from specpipe.serve.inputs import Options, input_tensors, text_request
from specpipe.serve.refusals import refusal

Reply = tuple[Any, InferenceServerException | None]
_NO_MODEL = "specpipe-no-model"


def answers_ping(engine_socket: Path, timeout_s: float) -> bool:
    """Tell whether the thread that owns the engine answers; it need not be idle."""
    try:
        ping_engine(engine_socket, timeout_s / 2)  # it waits twice: to connect and to hear
    except EngineError:
        return False
    return True


def answers_stream(url: str, timeout_s: float) -> bool:
    """Tell whether a stream is answered, by a request that Triton refuses before any queue."""
    reply = first_reply(
        url, timeout_s, lambda connection: connection.async_stream_infer(_NO_MODEL, [])
    )
    return reply is not None and not _is_unavailable(reply, url)


def answers_request(url: str, model: Model, timeout_s: float) -> bool:
    """Return whether a request for one token is answered; an error of the model is an answer too.

    A full queue is not an answer: other checks show whether the engine moves. specpipe's models
    leave the request out of their metrics.
    """
    drafts = None if model.draft_limit is None else 0
    options = Options(max_tokens=1, num_draft_tokens=drafts)
    request = text_request(model, "a", options, stream=model.decoupled)

    def send(connection: Any) -> None:
        connection.async_stream_infer(
            model.name,
            input_tensors(request.inputs),
            request_id=PROBE_ID,
            parameters=request.parameters,
        )

    reply = first_reply(url, timeout_s, send)
    return reply is not None and not _is_unavailable(reply, url)


def first_reply(url: str, timeout_s: float, send: Callable[[Any], None]) -> Reply | None:
    """Return a stream's first response or error, past any proxy; None if none comes in time.

    `send` sends the request on a connection whose stream has started.
    """
    replies: queue.Queue[Reply] = queue.Queue()
    connection = connect(url, direct=True)  # it is a server of this machine
    try:
        connection.start_stream(
            lambda result, error: replies.put((result, error)), stream_timeout=timeout_s
        )
        with contextlib.suppress(InferenceServerException):  # of a broken stream: see the reply
            send(connection)
        return replies.get(timeout=timeout_s + 1)  # gRPC itself ends the stream before
    except queue.Empty:
        return None
    finally:
        connection.stop_stream()  # waits for the stream's end, which has its time limit
        connection.close()


def _is_unavailable(reply: Reply, url: str) -> bool:
    error = reply[1]
    return error is not None and isinstance(refusal(error, url), Unavailable)
