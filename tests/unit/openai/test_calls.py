"""Requests to the models of a server: what makes the tokens of every chunk known."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from specpipe.core.endpoint import Model, Serving
from specpipe.core.errors import Unsupported
from specpipe.engine.llmapi.endpoint import describe as describe_llmapi
from specpipe.engine.upstream_models import TOKENS, UPSTREAMS_TEXT, upstream_endpoint
from specpipe.openai.calls import completion_call
from specpipe.openai.requests import CompletionRequest, read_completion
from specpipe.runtime.tokens import TextTokenizer

OURS = upstream_endpoint(Model("tensorrt_llm", TOKENS), None, streams=True)
UPSTREAMS = replace(
    OURS, texts=(replace(OURS.text, tensors=UPSTREAMS_TEXT, counts_every_response=False),)
)
TOKENIZER = TextTokenizer(Tokenizer(WordLevel({"a": 0}, "a")), 1, (0,), 0, 1)
LLMAPI = describe_llmapi(Serving("none"))


def asked(**options: bool) -> CompletionRequest:
    body = {"model": "m", "prompt": "a", "stream": True, "stream_options": options}
    return read_completion(body)


def test_our_text_models_count_every_response_only_on_request() -> None:
    for continuous in (False, True):
        request = asked(include_usage=True, continuous_usage_stats=continuous)
        call = completion_call(OURS, None, request, "a")
        assert call.request.parameters == ({"count_every_response": True} if continuous else {})


def test_a_server_that_counts_only_at_the_end_refuses_usage_in_every_chunk() -> None:
    with pytest.raises(Unsupported, match="does not report the tokens of a stream before its end"):
        completion_call(UPSTREAMS, TOKENIZER, asked(continuous_usage_stats=True), "a")
    completion_call(UPSTREAMS, TOKENIZER, asked(include_usage=True), "a")


def test_the_front_counts_for_a_server_that_never_does_if_it_has_the_tokenizer() -> None:
    call = completion_call(LLMAPI, TOKENIZER, asked(continuous_usage_stats=True), "a")
    assert call.request.parameters == {} and call.prompt_text == "a"
    with pytest.raises(Unsupported, match="does not have the tokenizer"):
        completion_call(LLMAPI, None, asked(continuous_usage_stats=True), "a")
