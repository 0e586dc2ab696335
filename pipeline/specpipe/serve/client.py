"""A gRPC client for whole answers, streams and tokens; also works with upstream's server.

with Client("127.0.0.1:8001") as client:
    print(client.generate("What is the capital of France?", chat=True).text)
    for piece in client.stream("Once upon a time", Options(max_tokens=64)):
        print(piece.text, end="", flush=True)
"""

import contextlib
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from tritonclient.utils import InferenceServerException

from specpipe.core.contracts import Logits
from specpipe.core.conversation import Conversation as Conversation
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import Unsupported
from specpipe.serve.connect import ClientTls as ClientTls
from specpipe.serve.connect import connect
from specpipe.serve.description import fetch_endpoint
from specpipe.serve.inputs import (
    ModelRequest,
    context_request,
    input_tensors,
    text_request,
    token_request,
)
from specpipe.serve.inputs import Options as Options
from specpipe.serve.inputs import unshared as unshared
from specpipe.serve.pieces import Acceptance as Acceptance
from specpipe.serve.pieces import Generation as Generation
from specpipe.serve.pieces import Piece as Piece
from specpipe.serve.pieces import Reader, context_rows, is_final
from specpipe.serve.pieces import collect as collect
from specpipe.serve.refusals import absence, disconnection, refusal


class Client:
    """A connection to one server; thread-safe, with one stream at a time in each thread.

    `endpoint` describes the server; without it, the first request fetches the description from the
    server. `count` counts the tokens of an answer where the server does not report them. `tls`
    encrypts the connection, if the server has a certificate. Requests reuse the gRPC channels of
    earlier requests that ended without an error; `close` closes the channels.
    """

    def __init__(
        self,
        url: str,
        endpoint: Endpoint | None = None,
        *,
        timeout_s: float = 600,
        count: Callable[[str], int] | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        self._url, self._timeout_s, self._tls = url, timeout_s, tls
        self._endpoint, self._count = endpoint, count
        self._idle: deque[Any] = deque()  # open channels that no request uses

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the channels."""
        self.close()

    def close(self) -> None:
        """Close the channels that no request uses."""
        while self._idle:
            self._idle.pop().close()

    @property
    def endpoint(self) -> Endpoint:
        """The description of the server; raises what `fetch_endpoint` raises."""
        if self._endpoint is None:
            self._endpoint = fetch_endpoint(self._url, self._tls)
        return self._endpoint

    def stream(
        self,
        prompt: str | Conversation,
        options: Options | None = None,
        *,
        model: str | None = None,
        chat: bool = False,
    ) -> Iterator[Piece]:
        """Yield the answer to `prompt` piece by piece; leaving the loop cancels the request.

        A conversation is sent in the model's chat template, and with `chat` a text is too, as a
        user's message. `model` is one of `endpoint.texts`. Raises ConfigError or Unsupported if the
        request cannot be answered or is refused, Unavailable if the server is busy, cannot be
        reached or ends, StageFailed if it fails.
        """
        return self._call(self._text_request(prompt, options, model, chat=chat, stream=True))

    def generate(
        self,
        prompt: str | Conversation,
        options: Options | None = None,
        *,
        model: str | None = None,
        chat: bool = False,
    ) -> Generation:
        """Return the whole answer to `prompt`; see `stream`, which raises the same."""
        request = self._text_request(prompt, options, model, chat=chat, stream=False)
        return self.collect(self._call(request))

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield the tokens after `prompt`; one response per step where the model can stream.

        Raises Unsupported if the server has no model that takes tokens, and what `stream` raises.
        """
        model = self.endpoint.tokens
        if model is None:
            raise Unsupported(
                f"the server at {self._url} has no model that takes tokens",
                hint="send text instead",
            )
        return self._call(token_request(model, prompt, options))

    def collect(self, pieces: Iterator[Piece]) -> Generation:
        """Put the pieces of one answer together; raises what they raise."""
        answer = collect(pieces)
        if answer.output_tokens is None and self._count is not None:
            return replace(answer, output_tokens=self._count(answer.text))
        return answer

    def _text_request(
        self,
        prompt: str | Conversation,
        options: Options | None,
        name: str | None,
        *,
        chat: bool,
        stream: bool,
    ) -> ModelRequest:
        endpoint = self.endpoint
        model = endpoint.text if name is None else endpoint.named(name)
        if chat and isinstance(prompt, str):
            prompt = Conversation.of(prompt)
        if isinstance(prompt, Conversation) and not endpoint.chats:
            raise Unsupported(
                f"the model at {self._url} has no chat template that is known",
                hint="send text, in the form that the model was trained with",
            )
        given = options or Options()
        return text_request(model, prompt, given, stream=stream, template=endpoint.template)

    def context_logits(self, prompt: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits after every token of `prompt`, in blocks [n, V].

        Raises Unsupported if the server does not return them, and what `stream` raises.
        """
        model = self.endpoint.tokens
        if model is None:
            raise Unsupported(f"the server at {self._url} has no model that takes tokens")
        left = len(prompt)
        with contextlib.closing(self._results(context_request(model, prompt))) as results:
            for result, _ in results:
                rows = context_rows(result, model)
                if rows is not None and left > 0:  # upstream's repeat all of them
                    left -= len(rows)
                    yield rows

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
