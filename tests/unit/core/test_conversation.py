"""Conversations in JSON: what arrives is checked, and a refusal is a sentence."""

import json

import pytest

from specpipe.core.conversation import (
    MOST_MESSAGES,
    Conversation,
    dump_conversation,
    load_conversation,
)
from specpipe.core.errors import ConfigError, Unsupported

USER = {"role": "user", "content": "x"}


def test_a_conversation_survives_its_journey_as_json() -> None:
    for conversation in (
        Conversation.of("Grüße, 東京", "Be brief."),
        Conversation((USER,), add_generation_prompt=False, continues=True),
        Conversation(
            (USER, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}),
            ({"type": "function", "function": {"name": "f"}},),
            ({"title": "t"},),
            add_generation_prompt=False,
            template="rag",
            arguments={"enable_thinking": False},
        ),
    ):
        assert load_conversation(dump_conversation(conversation)) == conversation


def test_a_list_is_its_messages() -> None:
    assert load_conversation(json.dumps([USER])) == Conversation.of("x")


def test_each_text_is_changed_with_its_role_and_nothing_else() -> None:
    before = Conversation((USER,), ({"name": "f", "n": 1},), arguments={"a": [True, "b"]})
    after = before.each(lambda text, role: f"{role}|{text}")
    assert after.messages == ({"user|role": "user|user", "user|content": "user|x"},)
    assert after.tools == ({"|name": "|f", "|n": 1},) and after.arguments == {"|a": [True, "|b"]}
    assert sorted(before.texts()) == ["a", "b", "content", "f", "n", "name", "role", "user", "x"]


def nested(depth: int) -> str:
    return (
        '{"messages": [{"role": "user", "content": "x", "a": ' + "[" * depth + "]" * depth + "}]}"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "chat is no JSON"),
        ("[" * 100_000, "chat is no JSON"),
        ("3", "must be an object with 'messages', or a list of messages"),
        ('{"tools": []}', "must be an object with 'messages'"),
        ('{"messages": []}', "at least one message"),
        ('{"messages": "hi"}', "at least one message"),
        ("[1]", r"messages\[0\] must be an object with a 'role'"),
        ('[{"content": "x"}]', r"messages\[0\] must be an object with a 'role'"),
        ('[{"role": "us er"}]', "'us er': must be letters, digits and any of _ - ."),
        ('[{"role": ""}]', "must be letters"),
        ('[{"role": "user", "content": 3}]', "content must be a text or a list of parts"),
        ('[{"role": "user", "content": [{"type": "text"}]}]', "needs a 'text'"),
        ('[{"role": "a", "tool_calls": [{"function": {"name": "<|x|>"}}]}]', "'<|x|>': must be"),
        ('[{"role": "a", "tool_calls": 3}]', "must be letters"),
        ('{"messages": [{"role": "u"}], "tools": [{"name": "a b"}]}', "'a b': must be letters"),
        ('{"messages": [{"role": "u"}], "tools": ["a"]}', r"tools\[0\] is no object"),
        ('{"messages": [{"role": "u"}], "tools": {}}', "tools is {}: must be a list"),
        ('{"messages": [{"role": "u"}], "model": "a"}', "the key 'model': known are messages, "),
        ('{"messages": [{"role": "u"}], "chat_template_kwargs": 1}', "must be an object"),
        ('{"messages": [{"role": "u"}], "add_generation_prompt": 1}', "must be true or false"),
        ('[{"role": "u", "content": "\\ud800"}]', "half of a surrogate pair"),
        (nested(100), "more than 32 levels"),
        (json.dumps([USER] * (MOST_MESSAGES + 1)), f"at most {MOST_MESSAGES} are allowed"),
    ],
)  # fmt: skip
def test_what_no_template_can_be_given_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_conversation(text)


def test_images_are_not_supported() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:"}}
    with pytest.raises(Unsupported, match="'image_url' is not supported; use 'text'"):
        load_conversation(json.dumps([{"role": "user", "content": [part]}]))
