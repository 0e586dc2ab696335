"""Finds tool calls in the text of an answer, in the forms of four families of models.

hermes (Hermes, Qwen): `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, once a call.
llama (Llama 3): the whole answer is `{"name": .., "parameters": {..}}`, several separated by `;`.
mistral: `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`.
mistral_args (newer ones): `[TOOL_CALLS]name[ARGS]{..}`. Both are found under either name.
qwen_xml (Qwen3-Coder): `<tool_call><function=name><parameter=key>value</parameter></function>
</tool_call>`, once a call. A value is a text, or JSON if the tool's schema has another type.

The text must still have its special tokens: the marks are special tokens in some models. No I/O.

Not here: the request for a call (`tools` of a conversation), and grammars that force one, which are
in `tool_grammars`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from specpipe.core.conversation import ChatTemplate

ToolFormat = Literal["hermes", "llama", "mistral", "mistral_args", "qwen_xml"]
Tools = Sequence[Mapping[str, Any]]  # of a request

_BEGIN, _END = "<tool_call>", "</tool_call>"
_PYTHON = "<|python_tag|>"
_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MARKS: Mapping[ToolFormat, tuple[str, ...]] = {
    "hermes": (_BEGIN,), "llama": (_PYTHON, "{"), "mistral": (_CALLS,), "mistral_args": (_CALLS,),
    "qwen_xml": (_BEGIN,),
}  # fmt: skip
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class ToolCall:
    """One call of a function."""

    name: str
    arguments: Mapping[str, Any]

    def arguments_json(self) -> str:
        """Return the arguments as JSON, as OpenAI's clients receive them."""
        return json.dumps(self.arguments, ensure_ascii=False)


@dataclass(frozen=True)
class ParsedAnswer:
    """The content of an answer for the user, and its calls."""

    content: str
    calls: tuple[ToolCall, ...] = ()


def format_of(template: ChatTemplate) -> ToolFormat | None:
    """Return the form of a model's tool calls, by its chat template; None: not known."""
    text = "\n".join(template.templates.values())
    if _CALLS in text:
        return "mistral_args" if _ARGS in text else "mistral"
    if _BEGIN in text:
        if "<function=" in text:
            return "qwen_xml" if "<parameter=" in text else None
        return "hermes"
    if "<|start_header_id|>" in text and '"parameters"' in text:
        return "llama"
    return None


def parse_answer(text: str, form: ToolFormat, tools: Tools = ()) -> ParsedAnswer:
    """Return content and calls of a whole answer; `tools` have the types of arguments.

    An answer whose calls cannot be read is content as it is: nothing is dropped.
    """
    try:
        return _qwen_xml(text, tools) if form == "qwen_xml" else _PARSERS[form](text)
    except (ValueError, RecursionError):  # of the JSON in it, or of what the JSON holds
        return ParsedAnswer(text)


@dataclass
class ToolCallStream:
    """Splits a growing answer: content that is certain, and at its end the calls.

    Content before the first mark of a call is passed on at once. What may be the beginning of a
    mark is held back, and so is everything from the mark on.
    """

    form: ToolFormat
    tools: Tools = ()  # of the request, for the types of arguments
    passed: str = ""  # content that was returned
    held: str = ""
    calls: bool = field(default=False, init=False)  # whether a mark was seen

    def push(self, piece: str) -> str:
        """Take more text; return the content that is now certain."""
        self.held += piece
        if self.calls:
            return ""
        at = self._first_mark()
        self.calls = at is not None
        before = self.held[: self._unmarked() if at is None else at]
        certain = before.rstrip()  # spaces before a mark are no content
        self.held = self.held[len(certain) :]
        self.passed += certain
        return certain

    def finish(self) -> ParsedAnswer:
        """Return the rest of the content, and the calls."""
        parsed = parse_answer(self.passed + self.held, self.form, self.tools)
        if not parsed.calls:
            return ParsedAnswer(self.held)
        return ParsedAnswer(parsed.content[len(self.passed) :], parsed.calls)

    def _first_mark(self) -> int | None:
        if self.form == "llama":  # a call is the whole answer
            begun = (self.passed + self.held).lstrip()
            return 0 if not self.passed.strip() and begun.startswith(_MARKS["llama"]) else None
        found = self.held.find(_MARKS[self.form][0])
        return found if found >= 0 else None

    def _unmarked(self) -> int:
        """Return how much of the held text is no beginning of a mark."""
        mark = _MARKS[self.form][0]
        if self.form == "llama":
            waits = not self.passed.strip() and mark.startswith(self.held.lstrip())
            return 0 if waits else len(self.held)
        longest = max(n for n in range(len(mark)) if self.held.endswith(mark[:n]))
        return len(self.held) - longest


def _hermes(text: str) -> ParsedAnswer:
    content, *parts = text.split(_BEGIN)
    calls = tuple(_call(json.loads(part.split(_END)[0]), "arguments") for part in parts)
    return ParsedAnswer(content.rstrip() if calls else content, calls)


def _llama(text: str) -> ParsedAnswer:
    rest, calls = text.strip().removeprefix(_PYTHON).strip(), []
    while rest:
        value, end = _DECODER.raw_decode(rest)
        calls.append(_call(value, "parameters", "arguments"))
        rest = rest[end:].lstrip()
        if rest:
            rest = _after(rest, ";")
    return ParsedAnswer("" if calls else text, tuple(calls))


def _mistral(text: str) -> ParsedAnswer:
    content, *parts = text.split(_CALLS)
    calls = tuple(call for part in parts for call in _mistral_calls(part.strip()))
    return ParsedAnswer(content.rstrip() if calls else content, calls)


def _mistral_calls(part: str) -> Iterator[ToolCall]:
    if part.startswith(("[{", "[ {")):
        found, _ = _DECODER.raw_decode(part)
        yield from (_call(value, "arguments") for value in found)
        return
    name, mark, arguments = part.partition(_ARGS)
    if not mark:  # older: the arguments follow the name
        at = part.index("{")
        name, arguments = part[:at], part[at:]
    value, _ = _DECODER.raw_decode(arguments.lstrip())
    yield _call({"name": name.split(_CALL_ID)[0].strip(), "arguments": value}, "arguments")


def _qwen_xml(text: str, tools: Tools) -> ParsedAnswer:
    content, *parts = text.split(_BEGIN)
    schemas = dict(map(_schema, tools))
    calls = []
    for part in parts:
        found = _FUNCTION.search(part)
        if found is None:
            raise ValueError("no function in a call")
        types = schemas.get(found[1].strip(), {})
        values = _PARAMETER.findall(found[2])
        arguments = {key.strip(): _typed(value, types.get(key.strip())) for key, value in values}
        calls.append(ToolCall(found[1].strip(), arguments))
    return ParsedAnswer(content.rstrip() if calls else content, tuple(calls))


def _schema(tool: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the name of a tool and the schemas of its arguments."""
    function = tool.get("function", tool)
    return str(function.get("name")), (function.get("parameters") or {}).get("properties") or {}


def _typed(value: str, schema: Any) -> Any:
    """Return a text, or the value that its JSON is of, if the schema wants no text."""
    kind = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    if kind == "string":
        return value
    try:
        return json.loads(value)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def _after(text: str, mark: str) -> str:
    if not text.startswith(mark):
        raise ValueError(f"no {mark!r} between two calls")
    return text.removeprefix(mark).lstrip()


def _call(value: Any, *keys: str) -> ToolCall:
    """Return a call from its JSON; raises ValueError if it is none."""
    name = value.get("name") if isinstance(value, dict) else None
    found = [value[key] for key in keys if key in value] if name else []
    arguments: Any = found[0] if found else {}
    if isinstance(arguments, str):  # some models quote them, as OpenAI's API does
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call of a function")
    return ToolCall(name, arguments)


_PARSERS: Mapping[ToolFormat, Callable[[str], ParsedAnswer]] = {
    "hermes": _hermes, "llama": _llama, "mistral": _mistral, "mistral_args": _mistral,
}  # fmt: skip
