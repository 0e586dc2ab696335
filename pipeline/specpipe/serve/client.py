"""A gRPC client for people: whole answers, streams, and tokens; works with upstream's server too.

with Client("127.0.0.1:8001") as client:
    print(client.generate("What is the capital of France?", Options(max_tokens=32)).text)
    for piece in client.stream("Write a poem.", Options(max_tokens=64)):
        print(piece.text, end="", flush=True)
"""

import contextlib
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from specpipe.serve.inputs import Arrays, input_tensors, text_inputs, token_inputs
from specpipe.serve.inputs import Options as Options
from specpipe.serve.refusals import absence, disconnection, refusal


@dataclass(frozen=True)
class Acceptance:
    """How speculation went for one request."""

    draft_tokens: int = 0
    accepted_draft_tokens: int = 0

    @property
    def rate(self) -> float:
        """Accepted by drafted tokens; 0 if nothing was drafted."""
        return self.accepted_draft_tokens / self.draft_tokens if self.draft_tokens else 0.0


@dataclass(frozen=True)
class Piece:
    """One response: new text or tokens, and the counters so far."""

    text: str
    tokens: tuple[int, ...]
    final: bool
    acceptance: Acceptance
    output_tokens: int | None  # of the whole answer; known at the end
    at_s: float  # seconds since the request was sent


@dataclass(frozen=True)
class Generation:
    """A whole answer and its times, measured by the client."""

    text: str
    tokens: tuple[int, ...]
    acceptance: Acceptance
    output_tokens: int
    first_s: float  # to the first response
    total_s: float
    step_tokens: tuple[int, ...]  # tokens of every response; one response a step, if streamed


class Client:
    """A connection to one server; thread-safe for whole requests, one stream at a time a thread."""

    def __init__(self, url: str, *, timeout_s: float = 600) -> None:
        self._url, self._timeout_s = url, timeout_s

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to do: every request has a connection of its own."""

    def stream(
        self, text: str, options: Options | None = None, *, model: str = "tensorrt_llm_bls"
    ) -> Iterator[Piece]:
        """Yield the answer to `text` piece by piece; leaving the loop cancels the request.

        Raises ConfigError or Unsupported if the server refuses the request, Unavailable if it is
        busy, cannot be reached or ends, StageFailed if it fails.
        """
        return self._call(model, text_inputs(text, options or Options(), stream=True))

    def generate(
        self, text: str, options: Options | None = None, *, model: str = "tensorrt_llm_bls"
    ) -> Generation:
        """Return the whole answer to `text`; raises what `stream` raises."""
        inputs = text_inputs(text, options or Options(), stream=False)
        return collect(self._call(model, inputs))

    def stream_tokens(
        self, prompt: Sequence[int], options: Options, *, model: str = "tensorrt_llm"
    ) -> Iterator[Piece]:
        """Yield the tokens after `prompt`, one response a step; raises what `stream` raises."""
        parameters = {}
        if options.num_draft_tokens is not None:
            parameters["num_draft_tokens"] = options.num_draft_tokens
        return self._call(model, token_inputs(prompt, options), parameters)

    def _call(
        self,
        model: str,
        inputs: Arrays,
        parameters: Mapping[str, int] | None = None,
    ) -> Iterator[Piece]:
        tensors = input_tensors(inputs)
        answers: Answers = queue.Queue()
        connection = grpc.InferenceServerClient(self._url)
        began = time.perf_counter()
        finished, answered = False, False
        try:
            _send(connection, model, tensors, dict(parameters or {}), answers)
            while not finished:
                result, error = answers.get(timeout=self._timeout_s)
                if error is not None:
                    finished = True
                    raise refusal(error, self._url, answered=answered)
                piece = _piece(result, time.perf_counter() - began)
                finished, answered = piece.final, True
                yield piece
        except queue.Empty:
            silence = f"nothing arrived for {self._timeout_s:.0f} s"
            lost = disconnection if answered else absence
            raise lost(silence, self._url) from None
        finally:
            connection.stop_stream(cancel_requests=not finished)
            connection.close()


Answers = queue.Queue[tuple[Any, InferenceServerException | None]]


def _send(
    connection: Any,
    model: str,
    tensors: list[Any],
    parameters: dict[str, int],
    answers: Answers,
) -> None:
    """Send one request; whatever comes back, errors included, arrives in `answers`."""
    # Never with the header triton_grpc_error, which asks for codes: Triton 2.51 crashes of it.
    connection.start_stream(lambda result, error: answers.put((result, error)))
    with contextlib.suppress(InferenceServerException):  # of a broken stream: see the callback's
        connection.async_stream_infer(
            model, tensors, enable_empty_final_response=True, parameters=parameters
        )


def collect(pieces: Iterator[Piece]) -> Generation:
    """Put the pieces of one answer together; raises what they raise."""
    found = list(pieces)
    last = found[-1]
    tokens = tuple(token for piece in found for token in piece.tokens)
    return Generation(
        text="".join(piece.text for piece in found),
        tokens=tokens,
        acceptance=last.acceptance,
        output_tokens=last.output_tokens if last.output_tokens is not None else len(tokens),
        first_s=found[0].at_s,
        total_s=last.at_s,
        step_tokens=tuple(len(piece.tokens) for piece in found),
    )


def _piece(result: Any, at_s: float) -> Piece:
    """Read one response; the last may be empty but for the mark that it is the last."""

    def value(name: str) -> int | None:
        array = result.as_numpy(name)
        return None if array is None else int(array.reshape(-1)[0])

    text, ids = result.as_numpy("text_output"), result.as_numpy("output_ids")
    mark = result.get_response().parameters.get("triton_final_response")
    return Piece(
        text="" if text is None else b"".join(text.reshape(-1)).decode("utf-8"),
        tokens=() if ids is None else tuple(int(i) for i in ids.reshape(-1)),
        final=mark is None or bool(mark.bool_param),
        acceptance=Acceptance(
            value("total_draft_tokens") or 0, value("total_accepted_draft_tokens") or 0
        ),
        output_tokens=value("num_output_tokens"),
        at_s=at_s,
    )
