"""A conversation as clients send it, and the chat template of a model, as data.

Not here: rendering, which needs jinja2; see `core/chat_template.py`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from specpipe.core.errors import ConfigError, Unsupported

DEFAULT = "default"  # the name of a template that stands for itself
WITH_TOOLS = "tool_use"  # the name of one that is taken for requests with tools
MOST_DEPTH = 32  # of lists and objects within each other
MOST_MESSAGES = 4096
_KEYS = (
    *("messages", "tools", "documents", "add_generation_prompt", "chat_template"),
    *("chat_template_kwargs", "continue_final_message"),
)
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")

Message = Mapping[str, Any]  # with a `role`; keys as in OpenAI's chat API


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a model, and the special tokens that it may name."""

    templates: Mapping[str, str]  # by name; a model with one template names it `default`
    special_tokens: Mapping[str, Any] = field(default_factory=dict)  # e.g. `bos_token`

    def choose(self, name: str, *, tools: bool) -> str:
        """Return the template of that name, or as transformers chooses if `name` is empty.

        Raises ConfigError if there is none of that name.
        """
        wanted = name or (WITH_TOOLS if tools and WITH_TOOLS in self.templates else DEFAULT)
        if wanted not in self.templates:
            raise ConfigError(
                f"chat_template is {wanted!r}: the model has no chat template of that name",
                hint=f"it has {', '.join(sorted(self.templates))}",
            )
        return self.templates[wanted]


@dataclass(frozen=True)
class Conversation:
    """What a chat template is rendered with."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    documents: tuple[Mapping[str, Any], ...] = ()
    add_generation_prompt: bool = True
    template: str = ""  # the name of one of the model's templates
    arguments: Mapping[str, Any] = field(default_factory=dict)  # further variables
    continues: bool = False  # the prompt ends within the last message, which the answer continues

    @staticmethod
    def of(text: str, system: str = "") -> "Conversation":
        """Return the conversation of a user's first message, after a system message if given."""
        user = Conversation(({"role": "user", "content": text},))
        return user.after_system(system) if system else user

    def after_system(self, text: str) -> "Conversation":
        """Return the conversation with a system message before it."""
        return replace(self, messages=({"role": "system", "content": text}, *self.messages))

    def then(self, role: str, text: str) -> "Conversation":
        """Return the conversation with one more message."""
        return replace(self, messages=(*self.messages, {"role": role, "content": text}))

    def each(self, change: Callable[[str, str], str]) -> "Conversation":
        """Return the conversation with `change(text, role)` for each text in it.

        Keys of objects are texts too. Outside of messages the role is empty.
        """
        plain = partial(_each, change=partial(_of_role, change, ""))
        return replace(
            self,
            messages=tuple(
                _each(message, partial(_of_role, change, str(message.get("role"))))
                for message in self.messages
            ),
            tools=tuple(map(plain, self.tools)),
            documents=tuple(map(plain, self.documents)),
            arguments=plain(self.arguments),
        )

    def texts(self) -> list[str]:
        """Return every text of the conversation."""
        found: list[str] = []

        def keep(text: str, role: str) -> str:
            found.append(text)
            return text

        self.each(keep)
        return found


def _of_role(change: Callable[[str, str], str], role: str, text: str) -> str:
    return change(text, role)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _each(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_each(item, change) for item in value]
    return value


def dump_conversation(conversation: Conversation) -> str:
    """Return a conversation as JSON, as the servers of specpipe take it."""
    values = asdict(conversation)
    names = {
        "template": "chat_template",
        "arguments": "chat_template_kwargs",
        "continues": "continue_final_message",
    }
    absent = {"continues": False}
    kept = {
        names.get(key, key): value
        for key, value in values.items()
        if value not in ((), {}, "") and absent.get(key) is not value
    }
    return json.dumps(kept, ensure_ascii=False)


def load_conversation(text: str, name: str = "chat") -> Conversation:
    """Return the conversation in a text; `name` is what errors call the text.

    The text is JSON: an object with `messages`, or its messages as a list. Raises ConfigError for
    anything that no template can be rendered with, Unsupported for images and other media.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no JSON: {error}") from error
    if isinstance(values, list):
        values = {"messages": values}
    if not isinstance(values, dict) or "messages" not in values:
        raise ConfigError(f"{name} must be an object with 'messages', or a list of messages")
    for key in values:
        if key not in _KEYS:
            raise ConfigError(f"{name} has the key {key!r}: known are {', '.join(_KEYS)}")
    _require_plain(values, name, MOST_DEPTH)
    continues = _typed(values, "continue_final_message", bool, False, name)
    begins = _typed(values, "add_generation_prompt", bool, not continues, name)
    if continues and begins:
        raise ConfigError(f"{name}: continue_final_message and add_generation_prompt are both true")
    return Conversation(
        messages=tuple(_messages(values["messages"], name)),
        tools=tuple(_objects(values, "tools", name)),
        documents=tuple(_objects(values, "documents", name)),
        add_generation_prompt=begins,
        template=_typed(values, "chat_template", str, "", name),
        arguments=_typed(values, "chat_template_kwargs", dict, {}, name),
        continues=continues,
    )


def _typed(values: Mapping[str, Any], key: str, kind: type, default: Any, name: str) -> Any:
    value = values.get(key)
    if value is not None and not isinstance(value, kind):
        wanted = {bool: "true or false", str: "a text", dict: "an object", list: "a list"}[kind]
        raise ConfigError(f"{name}: {key} is {value!r}: must be {wanted}"[:300])
    return default if value is None else value


def _objects(values: Mapping[str, Any], key: str, name: str) -> Iterator[Mapping[str, Any]]:
    for number, value in enumerate(_typed(values, key, list, [], name)):
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: {key}[{number}] is no object")
        if key == "tools":
            _require_name(_called(value), f"{name}: {key}[{number}]")
        yield value


def _messages(values: Any, name: str) -> Iterator[Message]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}: messages must be a list with at least one message")
    if len(values) > MOST_MESSAGES:
        raise ConfigError(f"{name} has {len(values)} messages: at most {MOST_MESSAGES} are allowed")
    for number, message in enumerate(values):
        place = f"{name}: messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{place} must be an object with a 'role'")
        _require_name(message["role"], f"{place}: role")
        _require_content(message.get("content"), place)
        calls = message.get("tool_calls") or []
        for call in calls if isinstance(calls, list) else [None]:
            _require_name(_called(call), f"{place}: tool_calls")
        yield message


def _called(tool: Any) -> Any:
    """Return the name of a function, of a tool or a call in either form."""
    inner = tool.get("function", tool) if isinstance(tool, dict) else None
    return inner.get("name") if isinstance(inner, dict) else None


def _require_name(value: Any, place: str) -> None:
    """Refuse what is no name: a template may join it with text to a control token."""
    if not isinstance(value, str) or not value or not _NAME.issuperset(value):
        raise ConfigError(
            f"{place} has the name {value!r}: must be letters, digits and any of _ - ."[:300]
        )


def _require_content(content: Any, place: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise ConfigError(f"{place}: content must be a text or a list of parts")
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Unsupported(f"{place}: a part of type {kind!r} is not supported; use 'text'")
        if not isinstance(part.get("text"), str):
            raise ConfigError(f"{place}: a part of type 'text' needs a 'text'")


def _require_plain(value: Any, name: str, depth: int) -> None:
    """Refuse nesting that a template cannot walk, and texts that are not Unicode."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError(f"{name} has half of a surrogate pair, which is no character")
        return
    if not isinstance(value, (dict, list)):
        return
    if depth == 0:
        raise ConfigError(f"{name} has more than {MOST_DEPTH} levels of lists and objects")
    parts: Sequence[Any] = [*value, *value.values()] if isinstance(value, dict) else value
    for part in parts:
        _require_plain(part, name, depth - 1)
