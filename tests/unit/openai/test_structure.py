"""What constrains an answer, in the spellings of OpenAI and vLLM."""

import re
from typing import Any

import pytest

from specpipe.core.errors import Unsupported
from specpipe.core.guide import Guide
from specpipe.openai.fields import InvalidField
from specpipe.openai.requests import read_chat, read_completion
from specpipe.openai.structure import ANY_OBJECT, ToolChoice, read_guide, read_tool_choice

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"é": {"type": "integer"}}}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in "ab"]
NAMED = {"type": "function", "function": {"name": "b"}}


@pytest.mark.parametrize(
    ("body", "guide"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": {"type": "json_schema",
                              "json_schema": {"name": "P", "strict": True, "schema": SCHEMA}}},
         Guide("json_schema", '{"type": "object", "properties": {"é": {"type": "integer"}}}')),
        ({"structured_outputs": {"regex": "a+", "choice": None}}, Guide("regex", "a+")),
        ({"structured_outputs": {"json": '{"a": 1}'}}, Guide("json_schema", '{"a": 1}')),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"structured_outputs": {"grammar": "x"}}, Guide("ebnf_grammar", "x")),
        ({"structured_outputs": {}}, None),
    ],
)  # fmt: skip
def test_a_guide_has_several_spellings(body: dict[str, Any], guide: Guide | None) -> None:
    assert read_guide(body) == guide
    assert read_chat({**CHAT, **body}).answer.options.guide == guide
    assert read_completion({"model": "m", "prompt": "x", **body}).answer.options.guide == guide


def test_a_choice_is_matched_literally() -> None:
    texts = ["a.b", "c|d (e)", "[x]", "é - \\", "", "1+1{2}^$"]
    guide = read_guide({"structured_outputs": {"choice": texts}})
    assert guide is not None and guide.kind == "regex"
    assert [bool(re.fullmatch(guide.text, text)) for text in [*texts, "axb"]] == [True] * 6 + [
        False
    ]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": {"type": "xml"}}, "'xml': use text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "schema is no object"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "no object"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "has 2 keys: must have one"),
        ({"structured_outputs": {"yaml": "a"}}, "has 'yaml': known are json, json_object"),
        ({"structured_outputs": {"regex": 3}}, "regex must be a string"),
        ({"structured_outputs": {"regex": " "}}, "is empty: the type regex needs one"),
        ({"structured_outputs": {"choice": [1]}}, "choice is no list of texts"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
         "exclude each other"),
        ({"guided_regex": "a"}, "guided_regex: use structured_outputs, with the key 'regex'"),
    ],
)  # fmt: skip
def test_a_wrong_guide_is_refused_in_a_sentence(body: dict[str, Any], words: str) -> None:
    with pytest.raises((InvalidField, Unsupported), match=words):
        read_chat({**CHAT, **body})


def test_calls_are_free_forbidden_or_forced() -> None:
    given = {None: ToolChoice(), "auto": ToolChoice(), "none": ToolChoice(calls=False),
             "required": ToolChoice(forced=True)}  # fmt: skip
    for choice, wanted in given.items():
        assert read_tool_choice({"tools": TOOLS, "tool_choice": choice}) == wanted
    assert read_tool_choice({"tools": TOOLS, "tool_choice": NAMED}) == ToolChoice(True, True, "b")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"tool_choice": "required"}, "wants a tool: tools has none"),
        ({"tool_choice": NAMED, "tools": TOOLS[:1]}, "wants the tool 'b': tools has none"),
        ({"tool_choice": {"type": "x"}, "tools": TOOLS}, "use auto, none, required or one"),
        ({"tool_choice": "any", "tools": TOOLS}, "use auto, none, required or one"),
        ({"tool_choice": "required", "tools": TOOLS, "structured_outputs": {"regex": "a"}},
         "its form is not yours to set"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_is_refused(body: dict[str, Any], words: str) -> None:
    with pytest.raises((InvalidField, Unsupported), match=words):
        read_chat({**CHAT, **body})


def test_tools_that_may_not_be_called_are_not_shown_to_the_model() -> None:
    asked = read_chat({**CHAT, "tools": TOOLS, "tool_choice": "none"})
    assert "tools" not in asked.conversation and not asked.tools
    assert read_chat({**CHAT, "tools": TOOLS}).tools == TOOLS
