"""Requests of the front into requests of a server's models."""

import json
from dataclasses import dataclass, replace
from typing import get_args

from specpipe.core.conversation import load_conversation
from specpipe.core.endpoint import Endpoint, Model
from specpipe.core.errors import Unsupported
from specpipe.openai.requests import AnswerOptions, ChatRequest, CompletionRequest, Prompt
from specpipe.runtime.tokens import TextTokenizer
from specpipe.runtime.tool_calls import ToolFormat, Tools
from specpipe.runtime.tool_grammars import forced_calls
from specpipe.serve.inputs import (
    ModelRequest,
    Options,
    scoring_request,
    text_request,
    token_request,
)

DEFAULT_TOKENS = 1024  # of a chat, where a server cannot tell how many fit
_ANY = 2**31 - 1
_FORCED: ToolFormat = "llama"  # of calls that are forced, where the model's own form is not known
_MOST_PROMPT = 10**7  # tokens; the server has a bound of its own


@dataclass(frozen=True)
class AnswerCall:
    """The request for one answer, and what to make of the responses."""

    request: ModelRequest
    most: int  # tokens of the answer
    stops: tuple[str, ...]  # stop texts
    before: str = ""  # what the answer's text begins with: the prompt, if it is repeated
    prompt: tuple[int, ...] = ()  # in tokens, if the answer arrives in tokens
    end_ids: tuple[int, ...] = ()  # of an answer in tokens
    logprobs: int | None = None  # as in the request
    tool_format: ToolFormat | None = None  # of the tool calls in the answer; None: not searched
    tools: Tools = ()
    most_calls: int | None = None

    @property
    def prompt_text(self) -> str | None:
        """The prompt as it is sent, if it is a text."""
        model = self.request.model
        array = self.request.inputs.get(model.tensors.prompt)
        if array is None or model.tensors.prompt_length:
            return None
        return bytes(array.reshape(-1)[0]).decode()


def completion_call(
    endpoint: Endpoint, tokenizer: TextTokenizer | None, asked: CompletionRequest, prompt: Prompt
) -> AnswerCall:
    """Return the call for the continuation of one prompt.

    Token ids and log probabilities need the model that takes tokens, and the tokenizer. Raises
    Unsupported or ConfigError if the server cannot do what the request needs.
    """
    answer = asked.answer
    options = _of_length(endpoint.text, answer)
    if isinstance(prompt, str) and asked.logprobs is None:
        options = _counted(endpoint.text, tokenizer, answer, options)
        return AnswerCall(
            text_request(endpoint.text, prompt, options, stream=answer.stream),
            most=options.max_tokens,
            stops=options.stop_words,
            before=prompt if asked.echo else "",
        )
    model, known = _token_side(endpoint, tokenizer)
    ids = tuple(known.encode(prompt, _MOST_PROMPT)) if isinstance(prompt, str) else prompt
    end_ids = () if options.end_id == -1 else known.end_ids
    of_tokens = _token_options(model, options, end_ids, asked.logprobs)
    make = scoring_request if asked.echo and asked.logprobs is not None else token_request
    return AnswerCall(
        make(model, ids, of_tokens),
        most=options.max_tokens,
        stops=options.stop_words,
        before=_echoed(known, ids, prompt) if asked.echo else "",
        prompt=ids,
        end_ids=end_ids,
        logprobs=asked.logprobs,
    )


def chat_call(
    endpoint: Endpoint, tokenizer: TextTokenizer | None, asked: ChatRequest
) -> AnswerCall:
    """Return the call for the answer to a conversation.

    With log probabilities, the front renders the messages and calls the model that takes tokens.
    Raises Unsupported if the model has no chat template, ConfigError for messages that no template
    takes.
    """
    if not endpoint.chats:
        raise Unsupported("messages: the model has no chat template; use /v1/completions")
    conversation = load_conversation(json.dumps(asked.conversation), "the request")
    form = next((f for f in get_args(ToolFormat) if f == endpoint.tool_format), None)
    options = _of_length(endpoint.text, asked.answer)
    if asked.choice.forced:
        form = form or _FORCED
        guide = forced_calls(
            form, asked.tools, only=asked.choice.only, parallel=asked.parallel_calls
        )
        options = replace(options, guide=guide)
    tool_format = form if asked.tools else None
    most_calls = None if asked.parallel_calls else 1
    if asked.logprobs is not None:
        model, known = _token_side(endpoint, tokenizer)
        ids = tuple(known.encode_prompt(conversation, _MOST_PROMPT))
        if not model.fits_max_tokens and options.fit_max_tokens:
            options = replace(options, max_tokens=DEFAULT_TOKENS, fit_max_tokens=False)
        end_ids = () if options.end_id == -1 else known.end_ids
        return AnswerCall(
            token_request(model, ids, _token_options(model, options, end_ids, asked.logprobs)),
            options.max_tokens,
            options.stop_words,
            prompt=ids,
            end_ids=end_ids,
            logprobs=asked.logprobs,
            tool_format=tool_format,
            tools=asked.tools,
            most_calls=most_calls,
        )
    request = text_request(
        endpoint.text,
        conversation,
        _counted(endpoint.text, tokenizer, asked.answer, options),
        stream=asked.answer.stream,
        template=endpoint.template,
    )
    return AnswerCall(
        request,
        options.max_tokens,
        options.stop_words,
        tool_format=tool_format,
        tools=asked.tools,
        most_calls=most_calls,
    )


def _counted(
    model: Model, tokenizer: TextTokenizer | None, answer: AnswerOptions, options: Options
) -> Options:
    """Return the options with which the tokens of every response are known, if they are needed.

    A server that reports no tokens has those of the answer counted by the front, at the end too.
    Raises Unsupported if the counts before the end would be others than those at the end.
    """
    if not answer.continuous_usage:
        return options
    if not model.counts_every_response and not model.tensors.output_tokens:
        if tokenizer is not None:
            return options
        raise Unsupported(
            "continuous_usage_stats: the server does not count tokens, and this front does not "
            "have the tokenizer",
            hint="start it with --tokenizer",
        )
    return replace(options, count_every_response=True)


def _of_length(model: Model, answer: AnswerOptions) -> Options:
    """Return the options with the number of tokens; without one, as many as fit if possible."""
    if answer.max_tokens is not None:
        return replace(answer.options, max_tokens=answer.max_tokens)
    if model.fits_max_tokens:
        return replace(answer.options, max_tokens=_ANY, fit_max_tokens=True)
    return replace(answer.options, max_tokens=DEFAULT_TOKENS)


def _token_side(endpoint: Endpoint, tokenizer: TextTokenizer | None) -> tuple[Model, TextTokenizer]:
    if endpoint.tokens is None or not endpoint.tokens.decoupled:
        raise Unsupported("token ids and logprobs: the server has no model that streams tokens")
    if tokenizer is None:
        raise Unsupported(
            "token ids and logprobs: this front does not have the tokenizer",
            hint="start it with --tokenizer",
        )
    return endpoint.tokens, tokenizer


def _token_options(
    model: Model, options: Options, end_ids: tuple[int, ...], logprobs: int | None
) -> Options:
    """Return the options for a model that takes tokens; the front itself finds stop texts.

    Without likeliest tokens of the model, that of a greedy answer is known. Raises Unsupported for
    more.
    """
    tops = logprobs or 0
    if tops and not model.tensors.tops:
        if tops > 1 or options.top_p is not None:
            raise Unsupported(
                f"logprobs is {tops}: this server returns the most likely tokens of greedy answers "
                "only; use temperature 0 and logprobs 1, or logprobs 0"
            )
        tops = 0
    plain = replace(options, end_id=None, end_ids=end_ids, stop_words=(), tops=tops)
    return replace(plain, log_probs=logprobs is not None)


def _echoed(tokenizer: TextTokenizer, ids: tuple[int, ...], prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(ids, special=True)
