"""The shapes of chats: OpenAI messages, ShareGPT, Alpaca, prompt and completion, plain text.

Every shape becomes messages with `role` and `content`, as chat templates read them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specpipe.train.corpus.records import is_chat

_LISTS = ("messages", "conversations", "conversation")
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "function_call": "assistant",
}
_QUESTIONS = ("instruction", "question", "prompt", "query")
_ANSWERS = ("output", "response", "answer", "completion")
NO_ANSWER = "no answer of an assistant"


class Unusable(Exception):
    """A record that nothing can be learned from, with the reason in a few words."""


@dataclass(frozen=True)
class Chat:
    """A conversation; the template gets each message as it is here."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_answered(self) -> bool:
        """Whether an assistant's message is in it."""
        return any(message["role"] == "assistant" for message in self.messages)

    def opening(self) -> "Chat":
        """Return the messages before the first of the assistant: a prompt."""
        roles = [message["role"] for message in self.messages]
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        return Chat(self.messages[:end], self.tools)


def read_shape(value: Any) -> Chat | str:
    """Return a record as a chat or as plain text.

    A chat may lack an answer: then it is a prompt. Raises Unusable for anything else.
    """
    if isinstance(value, str):
        return value
    if is_chat(value):
        return _chat(value, {})
    if not isinstance(value, Mapping):
        raise Unusable("neither a chat nor a text")
    for key in _LISTS:
        if key in value:
            return _chat(_decoded(value[key]), value)
    pair = _pair(value)
    if pair is not None:
        return pair
    if isinstance(value.get("text"), str):
        return str(value["text"])
    raise Unusable("no known keys: messages, conversations, instruction, prompt or text")


def category_of(value: Any) -> str:
    """Return the text under `category` of a record, as sets of prompts have it, or nothing."""
    category = value.get("category") if isinstance(value, Mapping) else None
    return category if isinstance(category, str) else ""


def _decoded(value: Any) -> Any:
    """Return what a text of JSON stands for; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _pair(value: Mapping[str, Any]) -> Chat | None:
    """Return a question with its answer, if any: Alpaca's keys, or prompt and completion."""
    question = next((value[key] for key in _QUESTIONS if key in value), None)
    answer = next((value[key] for key in _ANSWERS if key in value), None)
    turns = _said(answer)
    if isinstance(question, list) and is_chat(question):
        return _chat([*question, *turns], value)
    if not isinstance(question, str) or not question.strip():
        return None
    if isinstance(value.get("input"), str) and value["input"].strip():
        question = f"{question}\n\n{value['input']}"
    earlier = [
        {"role": role, "content": text}
        for turn in _history(value.get("history"))
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return _chat([*earlier, {"role": "user", "content": question}, *turns], value)


def _said(answer: Any) -> list[dict[str, Any]]:
    """Return an answer as messages: it is a text, or a list of messages itself."""
    if isinstance(answer, list) and is_chat(answer):
        return answer
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else []


def _history(value: Any) -> Sequence[Sequence[str]]:
    turns = value if isinstance(value, list) else []
    return [turn for turn in turns if isinstance(turn, list) and len(turn) == 2]


def _chat(messages: Any, record: Mapping[str, Any]) -> Chat:
    """Return a chat in OpenAI's or ShareGPT's names; `record` may have a system text and tools."""
    if not is_chat(messages):
        raise Unusable("messages are no list of objects with a role")
    found = [_message(message) for message in messages]
    system = record.get("system") or record.get("system_prompt")
    if isinstance(system, str) and system.strip() and found[0]["role"] != "system":
        found.insert(0, {"role": "system", "content": system})
    tools = _decoded(record.get("tools"))
    listed = tools if isinstance(tools, list) else []
    return Chat(tuple(found), tuple(tool for tool in listed if isinstance(tool, Mapping)))


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with `role`, `content` and what else templates read, of known form."""
    name = str(message.get("role", message.get("from"))).lower()
    role = _ROLES.get(name)
    if role is None:
        raise Unusable(f"unknown role {name!r}")
    content = message.get("content", message.get("value"))
    if name == "function_call":
        return {"role": role, "tool_calls": [_call(_decoded(content))]}
    kept = {k: v for k, v in message.items() if k not in ("role", "from", "content", "value")}
    calls = kept.pop("tool_calls", None) or []
    if isinstance(kept.get("function_call"), Mapping):
        calls = [*calls, kept.pop("function_call")]
    if calls:
        kept["tool_calls"] = [_call(call) for call in calls]
    text = _content(content)
    if text is None and not calls:
        raise Unusable("a message without content")
    return {"role": role, **({} if text is None else {"content": text}), **kept}


def _content(content: Any) -> str | None:
    """Return a content as text: parts of type text are joined by line breaks."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("content is neither text nor parts")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise Unusable(f"a part of type {kind!r}: only text can be learned")
    return "\n".join(part["text"] for part in content)


def _call(call: Any) -> dict[str, Any]:
    """Return a call of a tool with its arguments as an object, the form that templates read."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise Unusable("a tool call without the name of a function")
    arguments = _decoded(inner.get("arguments", {}))
    number = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {
        **number,
        "type": "function",
        "function": {"name": inner["name"], "arguments": arguments},
    }
