"""Pieces of an answer into OpenAI's objects: whole answers, chunks, usage, errors."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from specpipe.core.errors import ConfigError, SpecpipeError, Unavailable, Unsupported
from specpipe.openai.fields import InvalidField
from specpipe.openai.log_probs import LogProbs
from specpipe.openai.stop_texts import StopTexts
from specpipe.runtime.tool_calls import ToolCall, ToolCallStream
from specpipe.serve.pieces import Piece

Json = dict[str, Any]
BAD_REQUEST, NOT_FOUND, SERVER_ERROR, UNAVAILABLE = 400, 404, 500, 503


@dataclass(frozen=True)
class Header:
    """What every object of one answer begins with."""

    id: str
    created: int  # seconds since 1970
    model: str

    @classmethod
    def new(cls, kind: str, model: str) -> "Header":
        """Return the header of a new answer; `kind` is `chatcmpl` or `cmpl`."""
        return cls(f"{kind}-{secrets.token_hex(12)}", int(time.time()), model)

    def object(self, name: str, **more: Any) -> Json:
        """Return an object of this answer."""
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, **more}


@dataclass
class Tally:
    """What is known of one answer; complete once its last piece has arrived."""

    stops: StopTexts
    most: int = 0  # tokens that were asked for
    prompt: Sequence[int] = ()  # in tokens, if it was sent as tokens
    prompt_text: str | None = None  # as it was sent, if it was a text
    log_probs: LogProbs | None = None
    counts_drafts: bool = True  # whether the server reports draft tokens
    tools: ToolCallStream | None = None  # finds tool calls in the text
    most_calls: int | None = None
    count: Callable[[str], int] | None = None  # of the tokens of a text, where the server does not

    prompt_tokens: int | None = None  # None: not known
    output_tokens: int | None = None
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    steps: tuple[int, ...] | None = None  # that accepted 0, 1, ... draft tokens; None: not known
    finish_reason: str = "stop"
    text: list[str] = field(default_factory=list)
    calls: list[Json] = field(default_factory=list)  # of tools, known at the end
    sent: int = 0  # log probabilities that a stream has sent

    def add(self, piece: Piece) -> str:
        """Take the next piece; return the text that belongs to the answer for certain."""
        text = self.stops.push(piece.text, final=piece.final)
        if self.tools is not None:
            text = self._without_calls(self.tools, text, final=piece.final)
        self.text.append(text)
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.output_tokens = piece.output_tokens or self.output_tokens
        self.draft_tokens = piece.acceptance.draft_tokens
        self.accepted_draft_tokens = piece.acceptance.accepted_draft_tokens
        self.steps = piece.acceptance.steps
        if piece.final:
            self._complete(piece.finish_reason)
        if self.log_probs is not None:
            if piece.prompt_scores is not None:
                self.log_probs.add_prompt(self.prompt, piece.prompt_scores)
            self.log_probs.add_answer(piece)
        return text

    def new_log_probs(self) -> Json | None:
        """Return the log probabilities since the last call; None if there are none."""
        if self.log_probs is None or self.sent == len(self.log_probs.entries):
            return None
        begin, self.sent = self.sent, len(self.log_probs.entries)
        return self.log_probs.to_json(begin)

    def usage(self) -> Json | None:
        """Return the token counts so far; None if one is not known."""
        return usage_object(*self._counts())

    def usage_before(self) -> Json | None:
        """Return the token counts before the first token of the answer."""
        return usage_object(self._counts()[0], 0)

    def _counts(self) -> tuple[int | None, int | None]:
        """Return the tokens of prompt and answer, counted here if the server does not report them.

        The prompt's are counted once.
        """
        if self.prompt_tokens is None and self.prompt:
            self.prompt_tokens = len(self.prompt)
        if self.count is None:
            return self.prompt_tokens, self.output_tokens
        if self.prompt_tokens is None and self.prompt_text is not None:
            self.prompt_tokens = self.count(self.prompt_text)
        output = self.output_tokens
        return self.prompt_tokens, self.count("".join(self.text)) if output is None else output

    def _complete(self, reason: str | None) -> None:
        """Find what the server did not report; an end token may be the last of `most` tokens."""
        self.prompt_tokens, self.output_tokens = self._counts()
        full = self.output_tokens is not None and self.output_tokens >= self.most
        self.finish_reason = reason or ("length" if full else "stop")
        if self.calls:
            self.finish_reason = "tool_calls"

    def _without_calls(self, tools: ToolCallStream, text: str, *, final: bool) -> str:
        """Return the content in new text; at the end, the calls are known."""
        content = tools.push(text)
        if final:
            parsed = tools.finish()
            content += parsed.content
            self.calls = [call_object(call) for call in parsed.calls[: self.most_calls]]
        return content


def usage(tallies: Sequence[Tally]) -> Json | None:
    """Return the token counts of all answers to one request; None if one is not known."""
    prompts = [tally.prompt_tokens for tally in tallies if tally.prompt_tokens is not None]
    outputs = [tally.output_tokens for tally in tallies if tally.output_tokens is not None]
    if len(prompts) < len(tallies) or len(outputs) < len(tallies):
        return None
    return usage_object(sum(prompts), sum(outputs))


def usage_object(prompt: int | None, output: int | None) -> Json | None:
    """Return OpenAI's object of token counts; None if one is not known."""
    if prompt is None or output is None:
        return None
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def metrics(tallies: Sequence[Tally]) -> Json:
    """Return how speculation went, in the shape of vLLM's per-request metrics.

    Empty if the server does not report it. Steps are those that had a draft. If the server does not
    tell how many there were, it is the number of all steps: each emits its accepted draft tokens
    and one token more, but for a last one that a stop word cut short.
    """
    if not all(tally.counts_drafts for tally in tallies):
        return {}
    drafted = sum(tally.draft_tokens for tally in tallies)
    accepted = sum(tally.accepted_draft_tokens for tally in tallies)
    known = [tally.steps for tally in tallies if tally.steps is not None]
    if len(known) == len(tallies):
        histogram = [sum(counts) for counts in zip_longest(*known, fillvalue=0)]
        steps, more = sum(histogram), {"acceptance_histogram": histogram}
    else:
        steps, more = sum(tally.output_tokens or 0 for tally in tallies) - accepted, {}
    found = {
        "mean_acceptance_length": round(1 + accepted / steps, 4) if steps else 1.0,
        "draft_acceptance_rate": round(accepted / drafted, 4) if drafted else 0.0,
        "num_spec_steps": steps,
        "num_draft_tokens": drafted,
        "num_accepted_draft_tokens": accepted,
        **more,
    }
    return {"metrics": {"speculative_decoding": found}}


def error_object(error: SpecpipeError) -> tuple[int, Json]:
    """Return the HTTP status and OpenAI's error object for an exception."""
    status, kind, code = SERVER_ERROR, "server_error", None
    if isinstance(error, ConfigError | Unsupported):
        status, kind = BAD_REQUEST, "invalid_request_error"
        code = "unsupported" if isinstance(error, Unsupported) else "invalid_value"
    elif isinstance(error, Unavailable):
        status, code = UNAVAILABLE, "unavailable"
    param = error.param if isinstance(error, InvalidField) else None
    return status, error_body(error.message, kind, param, code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> Json:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def models_list(name: str, created: int) -> Json:
    """Return the answer to GET /v1/models."""
    return {"object": "list", "data": [model_object(name, created)]}


def model_object(name: str, created: int) -> Json:
    """Return one entry of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "specpipe"}


def chat_message(tally: Tally) -> Json:
    """Return the assistant's message; its content is null if it only calls tools."""
    text = "".join(tally.text)
    message: Json = {"role": "assistant", "content": text or (None if tally.calls else "")}
    if tally.calls:
        message["tool_calls"] = tally.calls
    return message


def call_object(call: ToolCall) -> Json:
    """Return OpenAI's object for one call; Mistral's templates want ids of nine characters."""
    function = {"name": call.name, "arguments": call.arguments_json()}
    return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}
