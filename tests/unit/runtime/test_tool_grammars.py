"""Forced calls: what a model writes under the grammar is found by the parser of its family."""

from typing import get_args

import pytest
from tokenizers import AddedToken, Tokenizer

from specpipe.core.errors import ConfigError
from specpipe.core.guide import Guide
from specpipe.runtime.grammars import Compiler, compiler_of
from specpipe.runtime.tokens import TextTokenizer
from specpipe.runtime.tool_calls import ToolCall, ToolFormat, parse_answer
from specpipe.runtime.tool_grammars import forced_calls

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "required": ["city"], "additionalProperties": False,
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                   "unit": {"enum": ["C", "F"]}},
}}}  # fmt: skip
STOP = {"type": "function", "function": {"name": "stop"}}
TOOLS = [WEATHER, STOP]
ROME = ToolCall("weather", {"city": "Rome <3", "days": 2, "unit": "C"})

ONE = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome <3", "days": 2,'
              ' "unit": "C"}}\n</tool_call>',
    "llama": '{"name": "weather", "parameters": {"city": "Rome <3", "days": 2, "unit": "C"}}',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome <3", "days": 2,'
               ' "unit": "C"}}]',
    "mistral_args": '[TOOL_CALLS]weather[ARGS]{"city": "Rome <3", "days": 2, "unit": "C"}',
    "qwen_xml": "<tool_call>\n<function=weather>\n<parameter=city>\nRome <3\n</parameter>\n"
                "<parameter=days>\n2\n</parameter>\n<parameter=unit>\nC\n</parameter>\n"
                "</function>\n</tool_call>",
}  # fmt: skip
NEXT = {"hermes": "\n", "llama": "; ", "mistral_args": "", "qwen_xml": "\n"}
every_form = pytest.mark.parametrize("form", get_args(ToolFormat))


def fits(compiler: Compiler, tokenizer: Tokenizer, guide: Guide, text: str) -> bool:
    matcher = compiler.compile(guide)
    return all(map(matcher.feed, tokenizer.encode(text).ids)) and matcher.accepts()


@pytest.fixture(scope="module")
def compiler(tokenizer: TextTokenizer) -> Compiler:
    return compiler_of(tokenizer, tokenizer.vocab_size)


@every_form
def test_a_forced_call_is_found_by_the_parser(
    form: ToolFormat, compiler: Compiler, tokenizer: TextTokenizer
) -> None:
    guide = forced_calls(form, TOOLS)
    assert fits(compiler, tokenizer.tokenizer, guide, ONE[form])
    assert parse_answer(ONE[form], form, TOOLS).calls == (ROME,)


@pytest.mark.parametrize("form", NEXT)
def test_several_calls_may_follow_each_other_unless_one_is_wanted(
    form: ToolFormat, compiler: Compiler, tokenizer: TextTokenizer
) -> None:
    two = NEXT[form].join([ONE[form]] * 2)
    assert parse_answer(two, form, TOOLS).calls == (ROME, ROME)
    assert fits(compiler, tokenizer.tokenizer, forced_calls(form, TOOLS), two)
    for single in ({"parallel": False}, {"only": "weather"}):
        guide = forced_calls(form, TOOLS, **single)  # type: ignore[arg-type]
        assert not fits(compiler, tokenizer.tokenizer, guide, two)


@every_form
def test_nothing_but_a_call_of_a_known_tool_with_its_arguments_is_permitted(
    form: ToolFormat, compiler: Compiler, tokenizer: TextTokenizer
) -> None:
    guide = forced_calls(form, TOOLS)
    call = ONE[form]
    wrong = ["", "Hello", call[:-1], f"Sure: {call}", call.replace("weather", "whether"),
             call.replace("C", "K"), call.replace("2", "two")]  # fmt: skip
    assert [text for text in wrong if fits(compiler, tokenizer.tokenizer, guide, text)] == []
    only = forced_calls(form, TOOLS, only="stop")
    assert not fits(compiler, tokenizer.tokenizer, only, call)


def test_a_mark_that_is_a_special_token_is_that_token(tokenizer: TextTokenizer) -> None:
    made = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    made.add_tokens([AddedToken("<tool_call>"), AddedToken("[TOOL_CALLS]", special=True)])
    marked = TextTokenizer(made, made.get_vocab_size(), (0,), 0, 20)
    compiler = compiler_of(marked, made.get_vocab_size())
    for form, mark in (("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]")):
        guide = forced_calls(form, TOOLS)  # type: ignore[arg-type]
        assert compiler.compile(guide).mask()[made.token_to_id(mark)]
        assert fits(compiler, made, guide, ONE[form])


def test_a_value_of_another_type_is_read_from_its_json() -> None:
    text = ONE["qwen_xml"].replace(">\n2\n", ">\n[1]\n").replace("Rome <3", "12\n3")
    (call,) = parse_answer(text, "qwen_xml", TOOLS).calls
    assert call.arguments == {"city": "12\n3", "days": [1], "unit": "C"}
    assert parse_answer("<tool_call>\n{}\n</tool_call>", "qwen_xml").calls == ()


def test_a_tool_without_a_name_or_a_schema_is_refused() -> None:
    unschemed = {"function": {"name": "f", "parameters": 3}}
    for tool, words in (({}, "no function with a name"), (unschemed, "no JSON schema")):
        with pytest.raises(ConfigError, match=words):
            forced_calls("llama", [tool])


@pytest.mark.parametrize("asked", ["<tool_call>x", "(a|b)[A-Z]?<\\|user\\|>!", "\\[TOOL_CALLS\\]"])
def test_the_text_of_a_special_token_is_spelled_with_others(
    asked: str, tokenizer: TextTokenizer
) -> None:
    """llguidance would permit the token for its text alone, and then not take it."""
    made = Tokenizer.from_str(tokenizer.tokenizer.to_str())
    made.add_tokens([AddedToken("<tool_call>"), AddedToken("[TOOL_CALLS]", special=True)])
    compiler = compiler_of(
        TextTokenizer(made, made.get_vocab_size(), (0,), 0, 20), made.get_vocab_size()
    )
    matcher, text = compiler.compile(Guide("regex", asked)), []
    while (mask := matcher.mask()).any() and len(text) < 40:
        text.append(int(mask.nonzero()[0][-1]))
        assert matcher.feed(text[-1])
    assert matcher.accepts() and not {1, 2, 320, 321} & set(text)
