"""The interface between the client and a protocol: gRPC of Triton, or HTTP of OpenAI's API."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from specpipe.core.contracts import Logits
from specpipe.core.conversation import Conversation
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import ConfigError
from specpipe.serve.connect import ClientTls
from specpipe.serve.grpc_transport import GrpcTransport
from specpipe.serve.http.base import is_http
from specpipe.serve.http.transport import HttpTransport
from specpipe.serve.inputs import Options
from specpipe.serve.pieces import Piece, PromptScores


class Transport(Protocol):
    """Sends requests to one server.

    Requests are checked when a method is called, and sent when its result is read; leaving the
    result cancels the request. Raises what `Client.stream` raises.
    """

    def describe(self, given: Endpoint | None) -> Endpoint:
        """Return how the server is called; `given` is the description of the run, if known."""

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

    def tokens(self, model: Model, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield the answer of a model that takes tokens."""

    def context_logits(self, model: Model, prompt: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits after every token of `prompt`, in blocks [n, V]."""

    def prompt_scores(self, model: Model, prompt: Sequence[int]) -> PromptScores:
        """Return the log probabilities of a prompt's tokens, and of the likeliest ones."""

    def close(self) -> None:
        """Close the connections that no request uses."""


def open_transport(
    url: str, *, timeout_s: float, tls: ClientTls | None, key: str | None
) -> Transport:
    """Return what calls the server at HOST:PORT (gRPC) or at an address with a scheme (HTTP).

    Raises ConfigError for an address of neither form, and for a key that gRPC cannot carry.
    """
    if is_http(url):
        return HttpTransport(url, timeout_s=timeout_s, tls=tls, key=key)
    if key is not None:
        raise ConfigError(
            f"{url} is an address of gRPC, where clients show no key",
            hint="give an address that begins with http://",
        )
    return GrpcTransport(url, timeout_s=timeout_s, tls=tls)
