"""A client for whole answers, streams and tokens, of servers that speak gRPC or OpenAI's API.

with Client("127.0.0.1:8001") as client:
    print(client.generate("What is the capital of France?", chat=True).text)
    for piece in client.stream("Once upon a time", Options(max_tokens=64)):
        print(piece.text, end="", flush=True)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType

from specpipe.core.contracts import Logits
from specpipe.core.conversation import Conversation as Conversation
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import Unsupported
from specpipe.serve.connect import ClientTls as ClientTls
from specpipe.serve.inputs import Options as Options
from specpipe.serve.inputs import unshared as unshared
from specpipe.serve.pieces import Acceptance as Acceptance
from specpipe.serve.pieces import Generation as Generation
from specpipe.serve.pieces import Piece as Piece
from specpipe.serve.pieces import PromptScores as PromptScores
from specpipe.serve.pieces import collect as collect
from specpipe.serve.transport import open_transport


class Client:
    """A connection to one server; thread-safe, with one stream at a time in each thread.

    `url` is HOST:PORT of gRPC (tritonserver, also upstream's), or http://HOST:PORT of an OpenAI API
    (trtllm-serve, Dynamo, vLLM, `specpipe openai`). `endpoint` describes the server; without it,
    the first request fetches the description from the server. `count` counts the tokens of an
    answer where the server does not report them. `tls` encrypts the connection, if the server has a
    certificate. `key` is the key of an OpenAI API. Requests reuse the connections of earlier
    requests that ended without an error; `close` closes them.
    """

    def __init__(
        self,
        url: str,
        endpoint: Endpoint | None = None,
        *,
        timeout_s: float = 600,
        count: Callable[[str], int] | None = None,
        tls: ClientTls | None = None,
        key: str | None = None,
    ) -> None:
        """Connect to nothing yet; raises ConfigError for an address that cannot be one."""
        self._url, self._given, self._count = url, endpoint, count
        self._endpoint: Endpoint | None = None
        self._transport = open_transport(url, timeout_s=timeout_s, tls=tls, key=key)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections that no request uses."""
        self._transport.close()

    @property
    def url(self) -> str:
        """The address of the server."""
        return self._url

    @property
    def endpoint(self) -> Endpoint:
        """The description of the server; raises what fetching it raises."""
        if self._endpoint is None:
            self._endpoint = self._transport.describe(self._given)
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
        return self._ask(prompt, options, model, chat=chat, stream=True)

    def generate(
        self,
        prompt: str | Conversation,
        options: Options | None = None,
        *,
        model: str | None = None,
        chat: bool = False,
    ) -> Generation:
        """Return the whole answer to `prompt`; see `stream`, which raises the same."""
        return self.collect(self._ask(prompt, options, model, chat=chat, stream=False))

    def stream_tokens(self, prompt: Sequence[int], options: Options) -> Iterator[Piece]:
        """Yield the tokens after `prompt`; one response per step where the model can stream.

        Raises Unsupported if the server has no model that takes tokens, and what `stream` raises.
        """
        return self._transport.tokens(self._tokens(), prompt, options)

    def collect(self, pieces: Iterator[Piece]) -> Generation:
        """Put the pieces of one answer together; raises what they raise."""
        answer = collect(pieces)
        if answer.output_tokens is None and self._count is not None:
            return replace(answer, output_tokens=self._count(answer.text))
        return answer

    def context_logits(self, prompt: Sequence[int]) -> Iterator[Logits]:
        """Yield the logits after every token of `prompt`, in blocks [n, V].

        Raises Unsupported if the server does not return them, and what `stream` raises.
        """
        return self._transport.context_logits(self._tokens(), prompt)

    def prompt_scores(self, prompt: Sequence[int]) -> PromptScores:
        """Return the log probabilities of a prompt's tokens, and of the likeliest ones.

        Raises Unsupported if the server does not return them, and what `stream` raises.
        """
        return self._transport.prompt_scores(self._tokens(), prompt)

    def _tokens(self) -> Model:
        """Return the model that takes tokens; raises Unsupported if there is none."""
        model = self.endpoint.tokens
        if model is None:
            raise Unsupported(
                f"the server at {self._url} has no model that takes tokens",
                hint="send text instead",
            )
        return model

    def _ask(
        self,
        prompt: str | Conversation,
        options: Options | None,
        name: str | None,
        *,
        chat: bool,
        stream: bool,
    ) -> Iterator[Piece]:
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
        return self._transport.text(endpoint, model, prompt, given, stream=stream)
