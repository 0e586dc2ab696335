"""OpenAI's request bodies into records; a field that would change the answer is never ignored."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from specpipe.core.errors import Unsupported
from specpipe.openai.fields import (
    Body,
    InvalidField,
    flag,
    number,
    record,
    text,
    texts,
    whole,
)
from specpipe.openai.structure import ToolChoice, read_guide, read_tool_choice
from specpipe.serve.inputs import Options

MOST_PROMPTS = 128  # of one request for completions
MOST_STOPS = 64
MOST_TOPS = 20  # likeliest tokens at a position
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_ANY_SEED = 2**63
Prompt = str | tuple[int, ...]  # a text or token ids

# Fields of both routes that are read below, and fields that cannot change an answer.
_READ = {
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "stop", "n",
    "num_draft_tokens", "logprobs", "logit_bias", "ignore_eos", "cache_salt",
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar",
}  # fmt: skip
_OF_TEMPLATES = {
    "messages", "tools", "documents", "add_generation_prompt", "chat_template",
    "chat_template_kwargs", "continue_final_message",
}  # fmt: skip
_OF_CHATS = _OF_TEMPLATES | {
    "tool_choice", "top_logprobs", "max_completion_tokens", "parallel_tool_calls",
}  # fmt: skip
_OF_COMPLETIONS = {"prompt", "echo", "best_of", "suffix"}
_WITHOUT_EFFECT = {
    "user", "store", "metadata", "service_tier", "prompt_cache_key",
    "safety_identifier",
}  # fmt: skip


@dataclass(frozen=True)
class AnswerOptions:
    """What both kinds of request have."""

    model: str
    options: Options
    stream: bool
    include_usage: bool  # a last chunk with the usage, in a stream
    max_tokens: int | None  # None: as many as the engine takes
    continuous_usage: bool = False  # the usage so far in every chunk of a stream


@dataclass(frozen=True)
class CompletionRequest:
    """A body of `/v1/completions`: texts or token ids, each to be continued."""

    answer: AnswerOptions
    prompts: tuple[Prompt, ...]
    echo: bool  # repeat the prompt before the answer
    logprobs: int | None  # None: none; 0: of the tokens; N: also of the N most likely ones


@dataclass(frozen=True)
class ChatRequest:
    """A body of `/v1/chat/completions`; its messages are rendered by the server."""

    answer: AnswerOptions
    conversation: Body  # as `core.conversation.load_conversation` reads it
    choice: ToolChoice
    parallel_calls: bool = True  # false: only the first call counts
    logprobs: int | None = None  # as of completions

    @property
    def tools(self) -> Sequence[Body]:
        """The tools whose calls are found in the answer."""
        return self.conversation.get("tools") or () if self.choice.calls else ()


def read_completion(body: Body) -> CompletionRequest:
    """Read a request for completions.

    Raises InvalidField for a wrong value, Unsupported for what no server of ours does.
    """
    _refuse_unknown(body, _READ | _OF_COMPLETIONS)
    if text(body, "suffix"):
        raise Unsupported("suffix: text cannot be inserted, only continued")
    if (whole(body, "best_of", 1) or 1) != 1:
        raise Unsupported(f"best_of is {body['best_of']}: one answer is generated; use 1")
    answer = _answer(body, whole(body, "max_tokens", 1) or DEFAULT_COMPLETION_TOKENS)
    logprobs, echo = whole(body, "logprobs", 0, MOST_TOPS), flag(body, "echo")
    if echo and (logprobs or 0) > 1:
        raise Unsupported(f"logprobs is {logprobs}: of a prompt, one most likely token is known")
    return CompletionRequest(answer, _prompts(body), echo, logprobs)


def read_chat(body: Body) -> ChatRequest:
    """Read a request for a chat completion; raises as `read_completion`."""
    _refuse_unknown(body, _READ | _OF_CHATS)
    tops = whole(body, "top_logprobs", 0, MOST_TOPS)
    if tops is not None and not flag(body, "logprobs"):
        raise InvalidField("top_logprobs", "top_logprobs is given: it needs logprobs: true")
    choice = read_tool_choice(body)
    conversation = {name: body[name] for name in _OF_TEMPLATES if body.get(name) is not None}
    if not choice.calls:
        conversation.pop("tools", None)
    most = whole(body, "max_completion_tokens", 1) or whole(body, "max_tokens", 1)
    parallel = body.get("parallel_tool_calls") is None or flag(body, "parallel_tool_calls")
    answer = _answer(body, most)
    if choice.forced and answer.options.guide is not None:
        raise InvalidField("tool_choice", "tool_choice forces a call: its form is not yours to set")
    logprobs = (tops or 0) if flag(body, "logprobs") else None
    return ChatRequest(answer, conversation, choice, parallel, logprobs)


def _answer(body: Body, max_tokens: int | None) -> AnswerOptions:
    model = text(body, "model")
    if not model:
        raise InvalidField("model", "model is missing: GET /v1/models lists the names")
    count = whole(body, "n", 1) or 1
    if count != 1:
        raise Unsupported(f"n is {count}: one answer is generated; send {count} requests")
    if record(body, "logit_bias"):
        raise Unsupported("logit_bias: the text models take no bias of tokens")
    stream = flag(body, "stream")
    last, always = _usage(record(body, "stream_options"))
    options = replace(_options(body), guide=read_guide(body))
    return AnswerOptions(model, options, stream, stream and last, max_tokens, stream and always)


def _usage(options: Body) -> tuple[bool, bool]:
    """Return whether the usage is in a last chunk, and whether it is in every chunk.

    As in vLLM, the second needs the first, which it implies where `include_usage` is left out.
    """
    continuous = flag(options, "continuous_usage_stats")
    last = flag(options, "include_usage") if "include_usage" in options else continuous
    return last, last and continuous


def _options(body: Body) -> Options:
    """Return the sampling options: OpenAI's defaults are temperature 1 and top_p 1.

    The server decodes greedily unless it is given a top_p or a top_k.
    """
    temperature = number(body, "temperature", 0, 2)
    top_p, top_k = number(body, "top_p", 0, 1), whole(body, "top_k", -1)
    seed = whole(body, "seed", -_ANY_SEED, 2 * _ANY_SEED - 1)
    greedy = temperature == 0 or top_p == 0 or top_k == 1
    sampled: dict[str, Any] = {} if greedy else {
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": 1.0 if top_p is None else top_p,
        "top_k": top_k if top_k is not None and top_k > 0 else None,
        "seed": secrets.randbelow(_ANY_SEED) if seed is None else seed % (2 * _ANY_SEED),
    }  # fmt: skip
    return Options(
        **sampled,
        presence_penalty=number(body, "presence_penalty", -2, 2),
        frequency_penalty=number(body, "frequency_penalty", -2, 2),
        repetition_penalty=number(body, "repetition_penalty", 0.01, 100),
        min_tokens=whole(body, "min_tokens", 0),
        stop_words=_stops(body),
        end_id=-1 if flag(body, "ignore_eos") else None,
        num_draft_tokens=whole(body, "num_draft_tokens", 0),
        cache_salt=text(body, "cache_salt"),
    )


def _stops(body: Body) -> tuple[str, ...]:
    stops = tuple(stop for stop in texts(body, "stop") if stop)
    if len(stops) > MOST_STOPS:
        raise InvalidField("stop", f"stop has {len(stops)} texts: at most {MOST_STOPS} are taken")
    return stops


def _prompts(body: Body) -> tuple[Prompt, ...]:
    """Return the prompts: a text, a list of texts, token ids, or a list of lists of them."""
    given = body.get("prompt")
    found = given if isinstance(given, list) and not _are_ids(given) else [given]
    if not found or not all(isinstance(item, str) or _are_ids(item) for item in found):
        raise InvalidField("prompt", "prompt must be a text, token ids, or a list of such prompts")
    if len(found) > MOST_PROMPTS:
        raise InvalidField(
            "prompt", f"prompt has {len(found)} prompts: at most {MOST_PROMPTS} are taken"
        )
    return tuple(tuple(item) if _are_ids(item) else str(item) for item in found)


def _are_ids(values: object) -> TypeGuard[list[int]]:
    """Tell whether a value is a list of token ids."""
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    )


def _refuse_unknown(body: Body, known: set[str]) -> None:
    for name, value in body.items():
        if name not in known and name not in _WITHOUT_EFFECT and value is not None:
            raise InvalidField(name, f"{name} is not a field that this server reads")
