"""Calls the models of a Triton server by gRPC."""

import contextlib
import queue
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from tritonclient.utils import InferenceServerException

from specpipe.core.contracts import Logits
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import StageFailed
from specpipe.serve.connect import ClientTls, connect
from specpipe.serve.description import fetch_endpoint
from specpipe.serve.inputs import (
    ModelRequest,
    Options,
    context_request,
    input_tensors,
    scoring_request,
    text_request,
    token_request,
)
from specpipe.serve.pieces import Piece, PromptScores, Reader, context_rows, is_final
from specpipe.serve.refusals import absence, disconnection, refusal


class GrpcTransport:
    """Requests to one server; see `specpipe.serve.transport.Transport`.

    Requests reuse the channels of earlier requests that ended without an error.
    """

    def __init__(self, url: str, *, timeout_s: float, tls: ClientTls | None) -> None:
        self._url, self._timeout_s, self._tls = url, timeout_s, tls
        self._idle: deque[Any] = deque()  # open channels that no request uses

    def close(self) -> None:
        """Close the channels that no request uses."""
        while self._idle:
            self._idle.pop().close()

    def describe(self, given: Endpoint | None) -> Endpoint:
        """Return the description of the server; raises what `fetch_endpoint` raises."""
        return given or fetch_endpoint(self._url, self._tls)

    def text(
        self,
        endpoint: Endpoint,
        model: Model,
        prompt: str | Conversation,
        options: Options,
        *,
        stream: bool,
    ) -> Iterator[Piece]:
        """Yield the answer of a model that takes text."""
        template = endpoint.template
        return self._call(text_request(model, prompt, options, stream=stream, template=template))

    def tokens(self, model: Model, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield the tokens after `prompt`; one response per step where the model can stream."""
        return self._call(token_request(model, prompt, options))

    def context_logits(self, model: Model, prompt: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits after every token of `prompt`, in blocks [n, V]."""
        left = len(prompt)
        with contextlib.closing(self._results(context_request(model, prompt))) as results:
            for result, _ in results:
                rows = context_rows(result, model)
                if rows is not None and left > 0:  # upstream's repeat all of them
                    left -= len(rows)
                    yield rows

    def prompt_scores(self, model: Model, prompt: Sequence[int]) -> PromptScores:
        """Return the log probabilities of a prompt's tokens, and of the likeliest ones."""
        for piece in self._call(scoring_request(model, prompt, Options(max_tokens=1))):
            if piece.prompt_scores is not None:
                return piece.prompt_scores
        raise StageFailed(f"{model.name} returned no log probabilities of the prompt")

    def _call(self, request: ModelRequest) -> Iterator[Piece]:
        reader = Reader(request.model)
        with contextlib.closing(self._results(request)) as results:
            for result, at_s in results:
                yield reader.piece(result, at_s)

    def _results(self, request: ModelRequest) -> Generator[tuple[Any, float], None, None]:
        """Yield every response with its arrival time, in seconds after the request was sent."""
        tensors = input_tensors(request.inputs)
        answers: Answers = queue.Queue()
        connection = self._connection()
        began = time.perf_counter()
        finished, answered, failed = False, False, False
        try:
            _send(connection, request.model.name, tensors, request.parameters, answers)
            while not finished:
                result, error = answers.get(timeout=self._timeout_s)
                if error is not None:
                    finished = failed = True
                    raise refusal(error, self._url, answered=answered)
                finished, answered = is_final(result), True
                yield result, time.perf_counter() - began
        except queue.Empty:
            silence = f"nothing arrived for {self._timeout_s:.0f} s"
            lost = disconnection if answered else absence
            raise lost(silence, self._url) from None
        finally:
            connection.stop_stream(cancel_requests=not finished)
            if finished and not failed:
                self._idle.append(connection)
            else:
                connection.close()

    def _connection(self) -> Any:
        """Return an unused open channel to the server, or a new one."""
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return connect(self._url, self._tls)


Answers = queue.Queue[tuple[Any, InferenceServerException | None]]


def _send(
    connection: Any,
    model: str,
    tensors: list[Any],
    parameters: dict[str, int | str],
    answers: Answers,
) -> None:
    """Send one request; responses and errors arrive in `answers`."""
    # Never send the header triton_grpc_error (error codes): it crashes Triton 2.51.
    connection.start_stream(lambda result, error: answers.put((result, error)))
    with contextlib.suppress(InferenceServerException):  # a broken stream; also in `answers`
        connection.async_stream_infer(
            model, tensors, enable_empty_final_response=True, parameters=parameters
        )
