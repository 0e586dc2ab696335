"""Tool calls in answers: every form, whole and in pieces of any size, and what is none."""

import json

import pytest

from specpipe.core.conversation import ChatTemplate
from specpipe.runtime.tool_calls import (
    ParsedAnswer,
    ToolCall,
    ToolCallStream,
    ToolFormat,
    format_of,
    parse_answer,
)

PARIS, ROME = ToolCall("weather", {"city": "Paris"}), ToolCall("weather", {"city": "Röm <|x|>"})
A, B = ({"name": c.name, "arguments": dict(c.arguments)} for c in (PARIS, ROME))
LLAMA_A = json.dumps({"name": "weather", "parameters": {"city": "Paris"}})
CALLS: list[tuple[ToolFormat, str, ParsedAnswer]] = [
    ("hermes", f"<tool_call>\n{json.dumps(A)}\n</tool_call>", ParsedAnswer("", (PARIS,))),
    ("hermes", f"Let me see.\n<tool_call>{json.dumps(A)}</tool_call>\n<tool_call>{json.dumps(B)}",
     ParsedAnswer("Let me see.", (PARIS, ROME))),
    ("hermes", '<tool_call>{"name": "now"}</tool_call>', ParsedAnswer("", (ToolCall("now", {}),))),
    ("llama", LLAMA_A, ParsedAnswer("", (PARIS,))),
    ("llama", f"<|python_tag|>{LLAMA_A}; {json.dumps(B)}", ParsedAnswer("", (PARIS, ROME))),
    ("mistral", f"[TOOL_CALLS]{json.dumps([A, B])}", ParsedAnswer("", (PARIS, ROME))),
    ("mistral", f"Yes. [TOOL_CALLS] [{json.dumps(A)}]", ParsedAnswer("Yes.", (PARIS,))),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', ParsedAnswer("", (PARIS,))),
    ("mistral", '[TOOL_CALLS]weather[CALL_ID]abc123456[ARGS]{"city": "Paris"}[TOOL_CALLS]weather'
     + json.dumps(B["arguments"]), ParsedAnswer("", (PARIS, ROME))),
]  # fmt: skip
CONTENT: list[tuple[ToolFormat, str]] = [
    ("hermes", "No call: <tool_cal is a word.  \n"),
    ("hermes", "<tool_call>{broken</tool_call> x"),
    ("hermes", '<tool_call>["name"]</tool_call>'),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
    ("llama", 'See {"name": "weather", "parameters": {}}'),
    ("llama", '{"answer": 42}'),
    ("llama", LLAMA_A + LLAMA_A),
    ("llama", "<|python_tag|>print(1)"),
    ("llama", ""),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS][{]"),
    ("mistral", "See [TOOL_CALL and [1] "),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "expected"), [*CALLS, *((f, t, ParsedAnswer(t)) for f, t in CONTENT)]
)
def test_calls_are_found_and_what_is_none_stays_content(
    form: ToolFormat, text: str, expected: ParsedAnswer, size: int
) -> None:
    assert parse_answer(text, form) == expected
    stream = ToolCallStream(form)
    certain = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
    last = stream.finish()
    assert ParsedAnswer("".join(certain) + last.content, last.calls) == expected


def test_content_is_passed_on_before_the_answer_ends() -> None:
    for form in ("hermes", "llama", "mistral"):
        stream = ToolCallStream(form)  # type: ignore[arg-type]
        assert [stream.push(piece) for piece in ("Hel", "lo ", "you")] == ["Hel", "lo", " you"]


def test_arguments_are_objects_even_if_a_model_quotes_them() -> None:
    quoted = json.dumps({"name": "weather", "arguments": json.dumps(dict(ROME.arguments))})
    (call,) = parse_answer(f"<tool_call>{quoted}</tool_call>", "hermes").calls
    assert call == ROME and call.arguments_json() == '{"city": "Röm <|x|>"}'


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("<|im_start|>{{ '<tool_call>' }}", "hermes"),
        ("<tool_call><function=f>", None),
        ("<|start_header_id|>ipython {'name': .., \"parameters\": ..}", "llama"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("[INST]{{ m.content }}[/INST]", None),
    ],
)
def test_the_form_is_known_by_the_chat_template(template: str, form: str | None) -> None:
    assert format_of(ChatTemplate({"default": template})) == form
