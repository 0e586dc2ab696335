"""A conversation that continues with the answers of a server."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from specpipe.core.conversation import Conversation
from specpipe.serve.client import Client, Options, Piece


@dataclass
class Dialogue:
    """What was said so far, and where it is continued."""

    client: Client
    options: Options
    model: str | None = None  # one of the server's models that take text
    begun: Conversation = field(default_factory=lambda: Conversation(()))  # before all messages
    so_far: Conversation = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all messages after the beginning."""
        self.so_far = self.begun

    def say(self, text: str) -> Iterator[Piece]:
        """Send a user's message; yield the answer piece by piece, whole if the server does so.

        Message and answer become part of the conversation, also if the caller stops within the
        answer. A message that is refused does not. Raises what `Client.stream` raises.
        """
        asked, answer, answered = self.so_far.then("user", text), "", False
        try:
            for piece in self._pieces(asked):
                answer, answered = answer + piece.text, True
                yield piece
        finally:
            if answered:
                self.so_far = asked.then("assistant", answer)

    def _pieces(self, asked: Conversation) -> Iterator[Piece]:
        endpoint, name = self.client.endpoint, self.model
        model = endpoint.text if name is None else endpoint.named(name)
        if model.decoupled:
            yield from self.client.stream(asked, self.options, model=name)
            return
        whole = self.client.generate(asked, self.options, model=name)
        yield Piece(whole.text, (), True, whole.acceptance, whole.output_tokens, whole.total_s)
