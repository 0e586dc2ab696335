"""The two forms of an answer: a chat completion and a completion, whole and in chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specpipe.openai.answers import Header, Json, Tally, chat_message, metrics, usage


class Shape(Protocol):
    """What distinguishes the answers of the two routes."""

    @property
    def header(self) -> Header:
        """What every object begins with."""

    @property
    def chunk(self) -> str:
        """The `object` of a chunk."""

    def begin(self, index: int) -> Json | None:
        """Return the choice before any text of an answer, if there is one."""

    def delta(self, index: int, text: str, log_probs: Json | None) -> Json:
        """Return the choice of new text."""

    def end(self, index: int, tally: Tally) -> list[Json]:
        """Return the last choices of an answer, for a chunk each."""

    def whole(self, tallies: Sequence[Tally]) -> Json:
        """Return the answer that is not streamed."""


@dataclass(frozen=True)
class CompletionShape:
    """Answers of `/v1/completions`; `before` is the text of every prompt that is repeated."""

    header: Header
    before: Sequence[str]
    chunk: str = "text_completion"

    def begin(self, index: int) -> Json | None:
        """Return the repeated prompt."""
        return self.delta(index, self.before[index], None) if self.before[index] else None

    def delta(self, index: int, text: str, log_probs: Json | None) -> Json:
        """Return the choice of new text."""
        return _completion(index, text, None, log_probs)

    def end(self, index: int, tally: Tally) -> list[Json]:
        """Return the choice that ends an answer."""
        return [_completion(index, "", tally.finish_reason)]

    def whole(self, tallies: Sequence[Tally]) -> Json:
        """Return a choice for every prompt."""
        choices = [
            _completion(
                index,
                self.before[index] + "".join(tally.text),
                tally.finish_reason,
                tally.log_probs.to_json() if tally.log_probs else None,
            )
            for index, tally in enumerate(tallies)
        ]
        return self.header.object(
            self.chunk, choices=choices, usage=usage(tallies), **metrics(tallies)
        )


def _completion(
    index: int, text: str, finish_reason: str | None, log_probs: Json | None = None
) -> Json:
    return {"index": index, "text": text, "logprobs": log_probs, "finish_reason": finish_reason}


@dataclass(frozen=True)
class ChatShape:
    """Answers of `/v1/chat/completions`."""

    header: Header
    chunk: str = "chat.completion.chunk"

    def begin(self, index: int) -> Json | None:
        """Return the role of the answer."""
        return _delta(index, {"role": "assistant", "content": ""}, None)

    def delta(self, index: int, text: str, log_probs: Json | None) -> Json:
        """Return the choice of new text."""
        return _delta(index, {"content": text}, None, log_probs)

    def end(self, index: int, tally: Tally) -> list[Json]:
        """Return the tool calls, complete, and the choice that ends the answer."""
        calls = [{"index": number, **call} for number, call in enumerate(tally.calls)]
        deltas = [_delta(index, {"tool_calls": [call]}, None) for call in calls]
        return [*deltas, _delta(index, {}, tally.finish_reason)]

    def whole(self, tallies: Sequence[Tally]) -> Json:
        """Return the message."""
        choices = [
            {
                "index": index,
                "message": chat_message(tally),
                "logprobs": tally.log_probs.to_json() if tally.log_probs else None,
                "finish_reason": tally.finish_reason,
            }
            for index, tally in enumerate(tallies)
        ]
        return self.header.object(
            "chat.completion", choices=choices, usage=usage(tallies), **metrics(tallies)
        )


def _delta(
    index: int, delta: Json, finish_reason: str | None, log_probs: Json | None = None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": log_probs, "finish_reason": finish_reason}
