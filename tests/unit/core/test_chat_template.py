"""Chat templates: the text is that of transformers, and a fault is a sentence."""

import json
from datetime import datetime
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models

from specpipe.core.chat_template import render, require_parsable, searched
from specpipe.core.conversation import ChatTemplate, Conversation, load_conversation
from specpipe.core.errors import ConfigError
from tests.helpers.chat_templates import (
    ALTERNATING,
    CONVERSATIONS,
    EITHER,
    PARTS,
    PLAIN,
    TEMPLATES,
    THINKING,
    TURNS,
    by_transformers,
)

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def rendered(template: str, case: dict[str, Any]) -> str:
    """Return a conversation that arrives as JSON, in a template."""
    return render(ChatTemplate({"default": template}, TOKENS), load_conversation(json.dumps(case)))


@pytest.fixture(scope="module")
def judge() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **TOKENS)


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "parts"])
def test_the_prompt_is_that_of_transformers(name: str, case: str, judge: Any) -> None:
    template, conversation = TEMPLATES[name], CONVERSATIONS[case]
    try:
        expected = by_transformers(judge, template, conversation)
    except (TemplateError, TypeError):
        with pytest.raises(ConfigError, match="the chat template (refuses|fails on) the messages"):
            rendered(template, conversation)
        return
    assert rendered(template, conversation) == expected


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "parts"])
@pytest.mark.parametrize("text", ["The capital is", "  Spaces around \n", "a</think>b"])
def test_a_prompt_that_is_continued_is_that_of_transformers(
    name: str, text: str, judge: Any
) -> None:
    case = {"messages": [TURNS[0], {"role": "assistant", "content": text}]}
    try:
        expected = by_transformers(
            judge, TEMPLATES[name], case, add_generation_prompt=False, continue_final_message=True
        )
    except (TemplateError, TypeError, ValueError):
        with pytest.raises(ConfigError, match="the messages|does not write the last message"):
            rendered(TEMPLATES[name], {**case, "continue_final_message": True})
        return
    assert rendered(TEMPLATES[name], {**case, "continue_final_message": True}) == expected


def test_only_a_text_can_be_continued_and_no_new_turn_begun() -> None:
    empty = {"messages": [TURNS[0], {"role": "assistant", "content": None}]}
    with pytest.raises(ConfigError, match="the last message has no text"):
        rendered(PLAIN, {**empty, "continue_final_message": True})
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(ConfigError, match="are both true"):
        rendered(PLAIN, {"messages": TURNS[:1], **both})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    told = {"messages": [{"role": "user", "content": parts}], "continue_final_message": True}
    assert rendered(PLAIN, told).endswith("b")


def test_a_template_refuses_messages_with_its_own_words() -> None:
    messages = [TURNS[0], TURNS[0]]
    with pytest.raises(ConfigError, match=r"refuses the messages: Roles must alternate, found us"):
        rendered(ALTERNATING, {"messages": messages})


def test_a_template_that_does_not_parse_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"^here: the chat template 'rag' does not parse: line 2"):
        require_parsable({"default": PLAIN, "rag": "a\n{% for %}"}, "here")


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ namespace(_x=1) }}",
     "{% set n = namespace() %}{% set n['__class__'] = 1 %}", "{{ range(999999999) }}",
     "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ 1 / 0 }}", "{{ {}['a'].b }}"],
)  # fmt: skip
def test_a_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(ConfigError, match="the chat template (refuses|fails on) the messages"):
        assert "object" not in rendered(template, {"messages": TURNS})
        raise ConfigError("the chat template refuses the messages: it wrote nothing")


def test_the_time_is_that_of_the_request() -> None:
    text = rendered("{{ strftime_now('%Y-%m-%d %H') }}", {"messages": TURNS})
    assert abs(datetime.now() - datetime.strptime(text, "%Y-%m-%d %H")).total_seconds() < 7200


def test_content_is_given_in_the_form_that_a_template_reads() -> None:
    text = {"messages": [{"role": "user", "content": "Hi"}]}
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    for template in (PARTS, EITHER):
        assert rendered(template, text) == rendered(template, parts) == "user:[Hi]"
    assert rendered(PLAIN, text) == rendered(PLAIN, parts)
    two = {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]}
    assert rendered(EITHER, two) == "user:[a][b]" and "user: a\nb" in rendered(PLAIN, two)


def test_null_is_absent_and_reasoning_has_both_names() -> None:
    template = "{% for m in messages %}{{ m.content }}{{ m.thinking }}{% endfor %}"
    turn = {"role": "assistant", "content": None, "reasoning": "why", "tool_calls": None}
    assert rendered(template, {"messages": [turn]}) == "why"
    assert (
        rendered(template.replace("thinking", "reasoning_content"), {"messages": [turn]}) == "why"
    )


def test_named_templates_are_chosen_as_transformers_chooses() -> None:
    named = ChatTemplate({"default": "d", "tool_use": "t", "rag": "r"})
    user = Conversation.of("x")
    assert render(named, user) == "d"
    assert render(named, Conversation(user.messages, tools=({},))) == "t"
    assert render(named, Conversation(user.messages, template="rag")) == "r"
    with pytest.raises(ConfigError, match=r"no chat template of that name\n.*default, rag, tool_u"):
        render(named, Conversation(user.messages, template="other"))


def test_what_a_template_searches_in_messages_is_found() -> None:
    assert {"</think>", "\\n"} >= {w for w in searched(THINKING) if "think" in w} == {"</think>"}
    assert searched("{{ m | replace('a', 'b') }}{{ '<|im_end|>' + m.content }}") == {"a", "b"}
