"""Calls OpenAI's API: `/models`, `/completions` and `/chat/completions`."""

import contextlib
import http.client
import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from specpipe.core.contracts import Logits
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.openai_models import openai_endpoint
from specpipe.serve.connect import ClientTls
from specpipe.serve.http.answers import AnswerReader
from specpipe.serve.http.base import parse_base
from specpipe.serve.http.connection import Connections
from specpipe.serve.http.events import Json, find, parse_object, read_events
from specpipe.serve.http.refusals import event_error, status_error, transport_error
from specpipe.serve.http.requests import HttpRequest, text_body, token_body
from specpipe.serve.inputs import Options
from specpipe.serve.pieces import Piece, PromptScores

_OK = 200
_BROKEN = (OSError, EOFError, http.client.HTTPException)


class HttpTransport:
    """Requests to one server; see `specpipe.serve.transport.Transport`."""

    def __init__(
        self, url: str, *, timeout_s: float, tls: ClientTls | None, key: str | None
    ) -> None:
        """Connect to nothing yet; raises ConfigError if `url` is no address of HTTP.

        `key` is sent as the bearer key of every request.
        """
        self._url = url
        self._connections = Connections(parse_base(url), tls, timeout_s)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def close(self) -> None:
        """Close the connections that no request uses."""
        self._connections.close()

    def describe(self, given: Endpoint | None) -> Endpoint:
        """Return the endpoint: the server's own names of its models, and what its kind can do.

        `given` describes the run that the server serves. Only what holds for any server of that run
        is taken from it: whether it speculates and has a chat template, and the most draft tokens.
        """
        models = self._get("/models").get("data")
        names = [str(entry["id"]) for entry in models or () if isinstance(entry, dict)]
        if not names:
            raise ConfigError(f"the server at {self._url} lists no models")
        owner = str(find({"data": models}, "data.owned_by") or "")
        if given is None:
            return openai_endpoint(owner, names)
        found = openai_endpoint(owner, names, speculates=given.text.speculates)
        found = replace(found, chats=given.chats or not given.tokenizer)
        limit, known = found.text.draft_limit, given.text.draft_limit
        if limit is None or known is None:
            return found
        limit = replace(limit, most=known.most, any_number=known.any_number)
        return replace(found, texts=tuple(replace(m, draft_limit=limit) for m in found.texts))

    def text(
        self,
        endpoint: Endpoint,
        model: Model,
        prompt: str | Conversation,
        options: Options,
        *,
        stream: bool,
    ) -> Iterator[Piece]:
        """Yield the answer to a text or a conversation."""
        return self._call(text_body(model, prompt, options, stream=stream))

    def tokens(self, model: Model, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield the tokens after `prompt`."""
        return self._call(token_body(model, prompt, options))

    def context_logits(self, model: Model, prompt: Sequence[int]) -> Iterator[Logits]:
        """Refuse: no OpenAI API returns logits."""
        raise Unsupported(f"the OpenAI API at {self._url} does not return the logits of a prompt")

    def prompt_scores(self, model: Model, prompt: Sequence[int]) -> PromptScores:
        """Refuse: `echo` of OpenAI's API returns texts of tokens, not their ids."""
        raise Unsupported(f"the OpenAI API at {self._url} does not return scores by token id")

    def _call(self, request: HttpRequest) -> Iterator[Piece]:
        reader = AnswerReader(request)
        with contextlib.closing(self._objects(request)) as objects:
            if request.streams:
                yield from reader.pieces(objects)
            else:
                yield from (reader.whole(values, at_s) for values, at_s in objects)

    def _objects(self, request: HttpRequest) -> Generator[tuple[Json, float], None, None]:
        """Yield the objects of an answer, with their times in seconds after the request was sent.

        The connection is closed unless the answer was read to its end.
        """
        body = json.dumps(request.body, ensure_ascii=False).encode()
        connection = self._connections.take()
        began, answered, reusable = time.perf_counter(), False, False
        try:
            response = self._send(connection, "POST", request.route, body)
            for values in _objects(response, stream=request.streams):
                answered = True
                yield values, time.perf_counter() - began
            response.read()
            reusable = response.isclosed()
        except _BROKEN as error:
            raise transport_error(error, self._url, answered=answered) from error
        finally:
            if reusable:
                self._connections.give_back(connection)
            else:
                connection.close()

    def _get(self, route: str) -> Json:
        connection = self._connections.take()
        try:
            with contextlib.closing(connection):
                return _whole(self._send(connection, "GET", route, None))
        except _BROKEN as error:
            raise transport_error(error, self._url, answered=False) from error

    def _send(
        self, connection: http.client.HTTPConnection, verb: str, route: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        """Return the answer to a request; raises the exception of any status but 200."""
        connection.request(verb, self._connections.target(route), body, self._headers)
        response = connection.getresponse()
        if response.status != _OK:
            raise status_error(response.status, response.read(), self._url)
        return response


def _objects(response: http.client.HTTPResponse, *, stream: bool) -> Iterator[Json]:
    """Yield the objects of an answer; raises the exception of one that reports an error.

    Raises EOFError if a stream ends before its answer does.
    """
    if not stream:
        yield _whole(response)
        return
    complete = False
    for values in read_events(response):
        if values is None:
            return
        if (error := event_error(values)) is not None:
            raise error
        complete = complete or bool(find(values, "choices.finish_reason"))
        yield values
    if not complete:
        raise EOFError("the stream ended early")


def _whole(response: http.client.HTTPResponse) -> Json:
    return parse_object(response.read())
