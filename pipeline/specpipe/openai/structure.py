"""What an answer must look like: `response_format` of OpenAI, `structured_outputs` of vLLM, and
`tool_choice`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specpipe.core.errors import Unsupported
from specpipe.core.guide import Guide, guide_of
from specpipe.openai.fields import Body, InvalidField, record

ANY_OBJECT = Guide("json_schema", '{"type": "object"}')
FIELDS = {"response_format", "structured_outputs"}
_OLD = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
        "guided_grammar": "grammar"}  # fmt: skip
_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~-]")


@dataclass(frozen=True)
class ToolChoice:
    """Whether an answer may, must or must not call tools."""

    calls: bool = True  # whether tools are offered at all
    forced: bool = False
    only: str = ""  # the name of the one tool; empty: any


def read_guide(body: Body) -> Guide | None:
    """Return what the answer must match; None: anything.

    Raises InvalidField for a wrong value, Unsupported for a form that no server of ours takes.
    """
    for old, new in _OLD.items():
        if body.get(old) is not None:
            raise Unsupported(f"{old}: use structured_outputs, with the key {new!r}")
    found = [guide for guide in (_response_format(body), _structured(body)) if guide is not None]
    if len(found) > 1:
        raise InvalidField(
            "structured_outputs", "response_format and structured_outputs exclude each other"
        )
    return found[0] if found else None


def _response_format(body: Body) -> Guide | None:
    asked = record(body, "response_format")
    kind = asked.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind != "json_schema":
        raise Unsupported(f"response_format is {kind!r}: use text, json_object or json_schema")
    schema = record(asked, "json_schema").get("schema")
    if not isinstance(schema, Mapping):
        raise InvalidField("response_format", "response_format.json_schema.schema is no object")
    return _schema(schema, "response_format")


def _structured(body: Body) -> Guide | None:
    asked = {key: value for key, value in record(body, "structured_outputs").items()
             if value not in (None, False)}  # fmt: skip
    if not asked:
        return None
    ((key, value),) = _one(asked).items()
    if key == "json_object":
        return ANY_OBJECT
    if key == "json":
        return _schema(value, "structured_outputs")
    if key == "choice":
        return _made("regex", _choice(value), "structured_outputs")
    kinds = {"regex": "regex", "grammar": "ebnf_grammar"}
    if key not in kinds:
        raise InvalidField(
            "structured_outputs",
            f"structured_outputs has {key!r}: known are json, json_object, regex, choice, grammar",
        )
    if not isinstance(value, str):
        raise InvalidField("structured_outputs", f"structured_outputs.{key} must be a string")
    return _made(kinds[key], value, "structured_outputs")


def _one(asked: Body) -> Body:
    if len(asked) > 1:
        raise InvalidField(
            "structured_outputs", f"structured_outputs has {len(asked)} keys: must have one"
        )
    return asked


def _schema(value: Any, field: str) -> Guide:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _made("json_schema", text, field)


def _made(kind: str, text: str, field: str) -> Guide:
    try:
        return guide_of(kind, text)
    except Exception as error:
        raise InvalidField(field, f"{field}: {error}") from error


def _choice(value: Any) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise InvalidField("structured_outputs", "structured_outputs.choice is no list of texts")
    return "|".join(_META.sub(r"\\\g<0>", text) for text in value)


def read_tool_choice(body: Body) -> ToolChoice:
    """Return the choice of tools; raises InvalidField for a tool that the request does not have."""
    choice = body.get("tool_choice")
    if choice in (None, "auto", "none"):
        return ToolChoice(calls=choice != "none")
    name = _named(choice)
    names = [record(tool, "function").get("name") for tool in body.get("tools") or []]
    if not names or (name and name not in names):
        wanted = f"the tool {name!r}" if name else "a tool"
        raise InvalidField("tool_choice", f"tool_choice wants {wanted}: tools has none")
    return ToolChoice(forced=True, only=name)


def _named(choice: Any) -> str:
    """Return the name of the tool that must be called; empty for any."""
    if choice == "required":
        return ""
    name = record(choice, "function").get("name") if isinstance(choice, Mapping) else None
    if not isinstance(name, str) or choice.get("type") != "function":
        raise Unsupported(f"tool_choice is {choice!r}: use auto, none, required or one function")
    return name
