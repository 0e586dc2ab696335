"""The shapes of chats that people have, each read as messages."""

from typing import Any

import pytest

from specpipe.train.corpus.shapes import Chat, Unusable, read_shape

USER = {"role": "user", "content": "Where does the ferry go?"}
ASSISTANT = {"role": "assistant", "content": "To the island."}
TURN = (USER, ASSISTANT)


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [USER, ASSISTANT]},
        [USER, ASSISTANT],
        {"conversations": [{"from": "human", "value": USER["content"]},
                           {"from": "gpt", "value": ASSISTANT["content"]}]},
        {"conversations": [{"role": "Human", "content": USER["content"]},
                           {"role": "GPT", "content": ASSISTANT["content"]}]},
        {"instruction": USER["content"], "input": "", "output": ASSISTANT["content"]},
        {"prompt": USER["content"], "completion": ASSISTANT["content"]},
        {"question": USER["content"], "answer": ASSISTANT["content"]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": USER["content"]}]},
                      ASSISTANT]},
        {"messages": '[{"role": "user", "content": "Where does the ferry go?"}, '
                     '{"role": "assistant", "content": "To the island."}]'},
    ],
    ids=["messages", "list", "sharegpt", "roles in any case", "alpaca", "completion", "question",
         "prompt of messages", "parts", "messages as a text"],
)  # fmt: skip
def test_every_shape_of_one_turn_is_the_same_chat(value: Any) -> None:
    assert read_shape(value) == Chat(TURN)


def test_alpacas_input_follows_its_instruction() -> None:
    chat = read_shape({"instruction": "Add.", "input": "2 and 3", "output": "5"})
    assert isinstance(chat, Chat) and chat.messages[0]["content"] == "Add.\n\n2 and 3"


def test_earlier_turns_and_a_system_text_come_first() -> None:
    value = {"instruction": "And back?", "output": "At six.", "system": "Be brief.",
             "history": [[USER["content"], ASSISTANT["content"]]]}  # fmt: skip
    chat = read_shape(value)
    assert isinstance(chat, Chat)
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user",
                                                  "assistant"]  # fmt: skip
    assert chat.messages[1:3] == TURN


def test_a_call_of_a_tool_has_its_arguments_as_an_object() -> None:
    """Templates write them with `tojson`: a text of JSON would be quoted twice."""
    call = {"name": "tide", "arguments": '{"port": "Oslo"}'}
    read = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Oslo"}}}
    values: list[Any] = [
        {"messages": [USER, {"role": "assistant", "content": None,
                             "tool_calls": [{"type": "function", "function": call}]}]},
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": call}]},
        {"conversations": [{"from": "human", "value": USER["content"]},
                           {"from": "function_call",
                            "value": '{"name": "tide", "arguments": {"port": "Oslo"}}'}]},
    ]  # fmt: skip
    for value in values:
        assert read_shape(value) == Chat((USER, {"role": "assistant", "tool_calls": [read]}))


def test_tools_may_be_a_text_of_json() -> None:
    tool = {"type": "function", "function": {"name": "tide"}}
    for tools in ([tool], '[{"type": "function", "function": {"name": "tide"}}]'):
        assert read_shape({"messages": [USER, ASSISTANT], "tools": tools}) == Chat(TURN, (tool,))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (7, "neither a chat nor a text"),
        ({"label": 3}, "no known keys"),
        ({"messages": "hello"}, "no list of objects with a role"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "unknown role 'robot'"),
        ({"messages": [{"role": "user"}]}, "without content"),
        ({"messages": [{"role": "user", "content": 3}]}, "neither text nor parts"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "name of a function"),
    ],
)
def test_what_is_neither_chat_nor_text_has_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_shape(value)


def test_the_opening_of_a_chat_ends_before_the_first_answer() -> None:
    assert Chat((*TURN, *TURN)).opening() == Chat((USER,))
