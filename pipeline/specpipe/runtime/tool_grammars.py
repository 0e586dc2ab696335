"""Grammars that force an answer to call tools, in the form that a model writes calls in.

They are in llguidance's dialect of Lark. A rule whose only text is a special token of the model
stands for that token; the compiler of the grammar knows which are.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.core.errors import ConfigError
from specpipe.core.guide import WHITESPACE, Guide, guide_of
from specpipe.runtime.tool_calls import ToolFormat

MOST_CALLS = 16  # in one answer
Tool = Mapping[str, Any]
_ANY: Tool = {"type": "object"}


def forced_calls(
    form: ToolFormat, tools: Sequence[Tool], *, only: str = "", parallel: bool = True
) -> Guide:
    """Return the guide of an answer that is nothing but calls of `tools`, as requests have them.

    `only` names the one tool that may be called, once. Raises ConfigError for a tool without a
    name, or if the grammar is too long.
    """
    functions = [_function(tool) for tool in tools]
    chosen = [function for function in functions if not only or function["name"] == only]
    more = 0 if only or not parallel else MOST_CALLS - 1
    lines = _FORMS[form](chosen, more)
    return guide_of("ebnf_grammar", "\n".join(lines) + "\n")


def _function(tool: Tool) -> Tool:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ConfigError(f"a tool has no function with a name: {tool}"[:200])
    return function


def _hermes(functions: Sequence[Tool], more: int) -> list[str]:
    return [
        f"start: call{_again(chr(10), 'call', more)}",
        'call: begin "\\n" one "\\n" finish',
        'begin: "<tool_call>"',
        'finish: "</tool_call>"',
        *_json_calls(functions, "arguments"),
    ]


def _llama(functions: Sequence[Tool], more: int) -> list[str]:
    return [f"start: one{_again('; ', 'one', more)}", *_json_calls(functions, "parameters")]


def _mistral(functions: Sequence[Tool], more: int) -> list[str]:
    return [
        f'start: begin "[" one{_again(", ", "one", more)} "]"',
        'begin: "[TOOL_CALLS]"',
        *_json_calls(functions, "arguments"),
    ]


def _mistral_args(functions: Sequence[Tool], more: int) -> list[str]:
    named = [f"{_text(f['name'])} middle args{n}" for n, f in enumerate(functions)]
    return [
        f"start: call{{1,{more + 1}}}",
        f"call: begin ({' | '.join(named)})",
        'begin: "[TOOL_CALLS]"',
        'middle: "[ARGS]"',
        *_arguments(functions),
    ]


def _qwen_xml(functions: Sequence[Tool], more: int) -> list[str]:
    lines = [
        f"start: call{_again(chr(10), 'call', more)}",
        'call: begin "\\n" one "</function>\\n" finish',
        'begin: "<tool_call>"',
        'finish: "</tool_call>"',
        "text[lazy]: /(?s:.*)\\n<\\/parameter>\\n/",
        f"one: {' | '.join(f'one{n}' for n in range(len(functions)))}",
    ]
    for n, function in enumerate(functions):
        schema = _parameters(function)
        required = schema.get("required") or []
        known = schema.get("properties") or {}
        names = [f"p{n}_{k}" + ("" if key in required else "?") for k, key in enumerate(known)]
        begin = _text(f"<function={function['name']}>\n")
        lines.append(f"one{n}: {' '.join([begin, *names])}")
        for k, (key, value) in enumerate(known.items()):
            lines.append(f"p{n}_{k}: {_text(f'<parameter={key}>')} {_text(chr(10))} {_xml(value)}")
    return lines


def _xml(schema: Any) -> str:
    """Return what a parameter may be: a text as it is, anything else in JSON."""
    end = _text("\n</parameter>\n")
    options = schema.get("enum") if isinstance(schema, Mapping) else None
    if options and all(isinstance(option, str) for option in options):
        return f"({' | '.join(map(_text, options))}) {end}"
    if not isinstance(schema, Mapping) or schema.get("type", "string") == "string":
        return "text"
    return f"{_json(schema)} {end}"


def _json_calls(functions: Sequence[Tool], key: str) -> list[str]:
    begins = [_text(f'{{"name": {_text(f["name"])}, "{key}": ') for f in functions]
    ones = [f'{begin} args{n} "}}"' for n, begin in enumerate(begins)]
    return [f"one: {' | '.join(ones)}", *_arguments(functions)]


def _arguments(functions: Sequence[Tool]) -> list[str]:
    return [f"args{n}: {_json(_parameters(function))}" for n, function in enumerate(functions)]


def _parameters(function: Tool) -> Tool:
    schema = function.get("parameters") or _ANY
    if not isinstance(schema, Mapping):
        raise ConfigError(f"the parameters of the tool {function['name']!r} are no JSON schema")
    return schema


def _json(schema: Tool) -> str:
    options = {"whitespace_pattern": WHITESPACE}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"


def _again(between: str, rule: str, most: int) -> str:
    return f" ({_text(between)} {rule}){{0,{most}}}" if most else ""


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


_FORMS = {
    "hermes": _hermes, "llama": _llama, "mistral": _mistral, "mistral_args": _mistral_args,
    "qwen_xml": _qwen_xml,
}  # fmt: skip
