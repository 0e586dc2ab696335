"""OpenAI's bodies: defaults, both spellings, and a sentence for every value that is not taken."""

from typing import Any

import pytest

from specpipe.core.errors import Unsupported
from specpipe.openai.fields import InvalidField
from specpipe.openai.requests import read_chat, read_completion

TEXT = {"model": "m", "prompt": "Once"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_openais_defaults_sample_and_sixteen_tokens_are_a_completion() -> None:
    asked = read_completion(TEXT)
    options = asked.answer.options
    assert (options.temperature, options.top_p, options.top_k) == (1.0, 1.0, None)
    assert asked.answer.max_tokens == 16 and asked.prompts == ("Once",) and not asked.answer.stream
    assert read_chat(CHAT).answer.max_tokens is None


def test_a_request_without_a_seed_draws_its_own() -> None:
    seeds = {read_completion(TEXT).answer.options.seed for _ in range(3)}
    assert len(seeds) == 3
    assert read_completion({**TEXT, "seed": -1}).answer.options.seed == 2**64 - 1


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"top_p": 0}, {"top_k": 1}])
def test_greedy_requests_send_no_sampling_options(greedy: dict[str, float]) -> None:
    options = read_chat({**CHAT, "seed": 3, **greedy}).answer.options
    assert (options.temperature, options.top_p, options.top_k, options.seed) == (None,) * 4


def test_the_newer_name_of_the_number_of_tokens_is_preferred() -> None:
    asked = read_chat({**CHAT, "max_tokens": 5, "max_completion_tokens": 7})
    assert asked.answer.max_tokens == 7


def test_prompts_come_in_four_forms() -> None:
    given: list[tuple[Any, tuple[object, ...]]] = [
        ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ]  # fmt: skip
    for prompt, expected in given:
        assert read_completion({"model": "m", "prompt": prompt}).prompts == expected


def test_fields_without_effect_and_nulls_are_taken() -> None:
    read_chat({**CHAT, "user": "me", "store": False, "metadata": {}, "unheard_of": None, "n": 1})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**TEXT, "temperature": "hot"}, "temperature"),
        ({**TEXT, "temperature": True}, "temperature"),
        ({**TEXT, "temperature": 3}, "temperature"),
        ({**TEXT, "top_p": float("nan")}, "top_p"),
        ({**TEXT, "max_tokens": 0}, "max_tokens"),
        ({**TEXT, "max_tokens": 1.5}, "max_tokens"),
        ({**TEXT, "stream": "yes"}, "stream"),
        ({**TEXT, "stop": [1]}, "stop"),
        ({**TEXT, "stop": ["x"] * 65}, "stop"),
        ({**TEXT, "stream_options": []}, "stream_options"),
        ({**TEXT, "unheard_of": 1}, "unheard_of"),
        ({**TEXT, "messages": []}, "messages"),
        ({"model": "m"}, "prompt"),
        ({"model": "m", "prompt": []}, "prompt"),
        ({"model": "m", "prompt": ["a", 1]}, "prompt"),
        ({"model": "m", "prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "a"}, "model"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidField, match=param) as raised:
        read_completion(body)
    assert raised.value.param == param


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2}, {"best_of": 2}, {"logit_bias": {"5": 1}}, {"suffix": "x"},
        {"logprobs": 2, "echo": True},
    ],
)  # fmt: skip
def test_what_a_completion_cannot_do_is_refused_and_not_ignored(more: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read_completion({**TEXT, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "xml"}}, {"guided_json": {}}, {"tool_choice": "any"},
    ],
)  # fmt: skip
def test_what_a_chat_cannot_do_is_refused_and_not_ignored(more: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        read_chat({**CHAT, **more})


def test_what_templates_take_is_passed_on_as_it_is() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    more = {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    asked = read_chat({**CHAT, **more})
    assert asked.tools and asked.conversation == {"messages": CHAT["messages"], **more}
    asked = read_chat({**CHAT, **more, "tool_choice": "none"})
    assert not asked.tools and "tools" not in asked.conversation


def test_log_probabilities_are_counted_alike_for_both_routes() -> None:
    assert read_chat(CHAT).logprobs is None and read_completion(TEXT).logprobs is None
    assert read_chat({**CHAT, "logprobs": True}).logprobs == 0
    assert read_chat({**CHAT, "logprobs": True, "top_logprobs": 20}).logprobs == 20
    assert read_completion({**TEXT, "logprobs": 5}).logprobs == 5
    for wrong in ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(InvalidField, match="top_logprobs"):
            read_chat({**CHAT, **wrong})


@pytest.mark.parametrize(
    ("options", "last", "always"),
    [
        ({}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
        ({"include_usage": None, "continuous_usage_stats": True}, False, False),
    ],
)
def test_usage_in_every_chunk_needs_the_last_chunk_as_in_vllm(
    options: dict[str, Any], last: bool, always: bool
) -> None:
    body = {**CHAT, "stream": True, "stream_options": options}
    answer = read_chat(body).answer
    assert (answer.include_usage, answer.continuous_usage) == (last, always)
    whole = read_chat({**body, "stream": False}).answer
    assert (whole.include_usage, whole.continuous_usage) == (False, False)
