"""Finds tool calls in the text of an answer, in the forms of three families of models.

hermes (Hermes, Qwen): `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, once a call.
llama (Llama 3): the whole answer is `{"name": .., "parameters": {..}}`, several separated by `;`.
mistral: `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`, or `[TOOL_CALLS]name[ARGS]{..}`.

The text must still have its special tokens: the marks are special tokens in some models. No I/O.

Not here: the request for a call (`tools` of a conversation), and grammars that force one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specpipe.core.conversation import ChatTemplate

ToolFormat = Literal["hermes", "llama", "mistral"]

_BEGIN, _END = "<tool_call>", "</tool_call>"
_PYTHON = "<|python_tag|>"
_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MARKS: Mapping[ToolFormat, tuple[str, ...]] = {
    "hermes": (_BEGIN,), "llama": (_PYTHON, "{"), "mistral": (_CALLS,),
}  # fmt: skip
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
        return "mistral"
    if _BEGIN in text:
        return None if "<function=" in text else "hermes"
    if "<|start_header_id|>" in text and '"parameters"' in text:
        return "llama"
    return None


def parse_answer(text: str, form: ToolFormat) -> ParsedAnswer:
    """Return content and calls of a whole answer.

    An answer whose calls cannot be read is content as it is: nothing is dropped.
    """
    try:
        return _PARSERS[form](text)
    except (ValueError, RecursionError):  # of the JSON in it, or of what the JSON holds
        return ParsedAnswer(text)


@dataclass
class ToolCallStream:
    """Splits a growing answer: content that is certain, and at its end the calls.

    Content before the first mark of a call is passed on at once. What may be the beginning of a
    mark is held back, and so is everything from the mark on.
    """

    form: ToolFormat
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
        parsed = parse_answer(self.passed + self.held, self.form)
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
    "hermes": _hermes, "llama": _llama, "mistral": _mistral,
}  # fmt: skip
