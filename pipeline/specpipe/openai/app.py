"""The routes of the front: chat completions, completions, models, health, metrics."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from specpipe import __version__
from specpipe.core.endpoint import Endpoint
from specpipe.core.errors import SpecpipeError
from specpipe.openai.answers import (
    NOT_FOUND,
    SERVER_ERROR,
    UNAVAILABLE,
    Header,
    Tally,
    error_body,
    error_object,
    model_object,
    models_list,
)
from specpipe.openai.calls import AnswerCall, chat_call, completion_call
from specpipe.openai.guard import (
    MOST_BODY_BYTES,
    ClientDisconnected,
    EventStream,
    RequestGuard,
    read_body,
    unless_disconnected,
)
from specpipe.openai.log_probs import LogProbs
from specpipe.openai.meters import TEXT_FORMAT, Metered, Meters, Relay, route_of
from specpipe.openai.requests import AnswerOptions, read_chat, read_completion
from specpipe.openai.shapes import ChatShape, CompletionShape, Shape
from specpipe.openai.stop_texts import StopTexts
from specpipe.openai.streaming import Pieces, events, gather, interleave
from specpipe.openai.token_answers import with_text
from specpipe.runtime.tokens import load_tokenizer
from specpipe.runtime.tool_calls import ToolCallStream
from specpipe.serve.async_client import AsyncClient
from specpipe.serve.connect import ClientTls

CLOSED_REQUEST = 499  # for the log only: the client has disconnected
Answer = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class FrontOptions:
    """How a front presents the server behind it."""

    url: str  # Triton's gRPC endpoint
    model: str  # the name that requests give
    key: str | None = None  # the bearer key of every request; None: no key
    tls: ClientTls | None = None
    tokenizer: Path | None = None  # its folder, for token ids and log probabilities
    metrics_url: str | None = None  # of Triton's own metrics; None: not known
    most_body_bytes: int = MOST_BODY_BYTES


class UnknownModel(Exception):
    """A request names a model that this front does not serve."""


class Front:
    """Answers OpenAI's requests from the server that an endpoint describes."""

    def __init__(self, options: FrontOptions, find_endpoint: Callable[[], Endpoint]) -> None:
        """Connect to nothing yet; `find_endpoint` raises Unavailable while there is no server.

        Raises ConfigError if there is no usable tokenizer in its folder.
        """
        self._options, self._find_endpoint = options, find_endpoint
        self._endpoint: Endpoint | None = None
        self._tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
        self._created = int(time.time())
        self._client: AsyncClient | None = None
        self._meters, self._relay = Meters(), Relay(options.metrics_url)

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        routes = [
            Route("/v1/chat/completions", answered(self._chat), methods=["POST"]),
            Route("/v1/completions", answered(self._complete), methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", answered(self._model)),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/version", _version),
        ]
        handlers: Any = {HTTPException: _http_error, Exception: _bug}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        guarded = RequestGuard(app, self._options.key, self._options.most_body_bytes)
        return Metered(guarded, self._meters)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with contextlib.aclosing(AsyncClient(self._options.url, self._options.tls)) as client:
            self._client = client
            yield

    async def _models(self, request: Request) -> Response:
        return JSONResponse(models_list(self._options.model, self._created))

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(model_object(self._options.model, self._created))

    async def _health(self, request: Request) -> Response:
        ready = self._client is not None and await self._client.is_ready()
        return Response(status_code=200 if ready else UNAVAILABLE)

    async def _metrics(self, request: Request) -> Response:
        text = self._meters.text() + await self._relay.text()
        return Response(text, media_type=TEXT_FORMAT)

    async def _complete(self, request: Request) -> Response:
        asked = read_completion(await read_body(request))
        self._check_model(asked.answer.model)
        endpoint = await self._described()
        calls = [
            completion_call(endpoint, self._tokenizer, asked, prompt) for prompt in asked.prompts
        ]
        header = Header.new("cmpl", asked.answer.model)
        shape = CompletionShape(header, [call.before for call in calls])
        return await self._answer(request, asked.answer, calls, shape)

    async def _chat(self, request: Request) -> Response:
        asked = read_chat(await read_body(request))
        self._check_model(asked.answer.model)
        call = chat_call(await self._described(), self._tokenizer, asked)
        shape = ChatShape(Header.new("chatcmpl", asked.answer.model))
        return await self._answer(request, asked.answer, [call], shape)

    async def _answer(
        self, request: Request, asked: AnswerOptions, calls: list[AnswerCall], shape: Shape
    ) -> Response:
        answers = [self._pieces(call) for call in calls]
        tallies = [self._tally(call, chat=isinstance(shape, ChatShape)) for call in calls]
        if not asked.stream:
            whole = await unless_disconnected(gather(answers, tallies), request.receive)
            return JSONResponse(shape.whole(whole))
        pieces = interleave(answers)
        first = await unless_disconnected(anext(pieces), request.receive)  # refusals have a status
        chunks = events(
            first,
            pieces,
            shape,
            tallies,
            usage_last=asked.include_usage,
            usage_always=asked.continuous_usage,
        )
        return EventStream(self._meters.watch(chunks, route_of(request.url.path)))

    def _pieces(self, call: AnswerCall) -> Pieces:
        assert self._client is not None  # the lifespan has begun
        pieces = self._client.stream(call.request)
        if not call.prompt:
            return pieces
        assert self._tokenizer is not None  # a call in tokens needs it
        return with_text(pieces, self._tokenizer, call)

    def _tally(self, call: AnswerCall, *, chat: bool) -> Tally:
        log_probs = None
        if call.logprobs is not None and self._tokenizer is not None:
            log_probs = LogProbs(self._tokenizer, call.logprobs, chat=chat)
        return Tally(
            StopTexts(call.stops),
            call.most,
            call.prompt,
            prompt_text=call.prompt_text,
            log_probs=log_probs,
            tools=ToolCallStream(call.tool_format, call.tools) if call.tool_format else None,
            most_calls=call.most_calls,
            counts_drafts=call.request.model.reports_acceptance,
            count=self._tokenizer.count if self._tokenizer is not None else None,
        )

    async def _described(self) -> Endpoint:
        """Return the endpoint; found with the first request, since servers load for a while."""
        if self._endpoint is None:
            self._endpoint = await anyio.to_thread.run_sync(self._find_endpoint)
        return self._endpoint

    def _check_model(self, name: str) -> None:
        if name != self._options.model:
            raise UnknownModel(
                f"the model {name!r} does not exist; this server has {self._options.model!r}"
            )


def answered(answer: Answer) -> Answer:
    """Return a route whose exceptions are OpenAI's error objects."""

    async def route(request: Request) -> Response:
        try:
            return await answer(request)
        except ClientDisconnected:
            return Response(status_code=CLOSED_REQUEST)
        except UnknownModel as error:
            body = error_body(str(error), "invalid_request_error", "model", "model_not_found")
            return JSONResponse(body, NOT_FOUND)
        except SpecpipeError as error:
            status, body = error_object(error)
            return JSONResponse(body, status)

    return route


async def _version(request: Request) -> Response:
    return JSONResponse({"version": f"specpipe {__version__}"})


async def _http_error(request: Request, error: HTTPException) -> Response:
    detail = "there is no such route" if error.status_code == NOT_FOUND else error.detail
    return JSONResponse(error_body(detail, "invalid_request_error"), error.status_code)


async def _bug(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(f"a bug: {error!r}", "server_error"), SERVER_ERROR)
