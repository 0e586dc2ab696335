"""Renders chat templates as `apply_chat_template` of transformers does, without transformers.

A template is a Jinja program of the model's authors. It runs in jinja2's sandbox, which has no
files and no modules. The environment (extensions, filters, globals) is that of transformers 5.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from specpipe.core.conversation import ChatTemplate, Conversation, Message
from specpipe.core.errors import ConfigError

# The names of one message's reasoning; a template reads the first or the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_SEARCHES = frozenset(
    [
        "count",
        "endswith",
        "find",
        "index",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "split",
        "startswith",
    ]
)
_PROBE = "some text of a user"
_HERE = "\U0001f85a the prompt ends here \U0001f85a "  # where an answer continues the last message
_NO_TOKENS = {f"{name}_token": "" for name in ("bos", "eos", "unk", "pad")}
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def require_parsable(templates: Mapping[str, str], place: str) -> None:
    """Raise ConfigError with the line if jinja2 cannot parse one of a model's templates."""
    for name, text in templates.items():
        try:
            compiled(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{place}: the chat template {name!r} does not parse: line {error.lineno}: "
                f"{error.message}",
                hint="fetch the model's chat template again, or correct it",
            ) from error


def render(template: ChatTemplate, conversation: Conversation) -> str:
    """Return the prompt of a conversation.

    Raises ConfigError with the template's own message if it refuses the conversation or fails.
    """
    if conversation.continues:
        return _begun(template, conversation)
    text = template.choose(conversation.template, tools=bool(conversation.tools))
    variables = {
        **template.special_tokens,
        **conversation.arguments,
        "messages": [_prepared(message, text) for message in conversation.messages],
        "tools": list(conversation.tools) or None,
        "documents": list(conversation.documents) or None,
        "add_generation_prompt": conversation.add_generation_prompt,
    }
    try:
        return compiled(text).render(**variables)
    except TemplateError as error:
        raise ConfigError(f"the chat template refuses the messages: {error}") from error
    except _FAULTS as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the chat template fails on the messages: {what}") from error


def _begun(template: ChatTemplate, conversation: Conversation) -> str:
    """Return the prompt up to the end of the last message's text, as transformers does.

    The space at the end of the mark shows whether the template trims texts.
    """
    *before, last = conversation.messages
    content = last.get("content")
    begun = content[-1]["text"] if isinstance(content, list) and content else content
    if not isinstance(begun, str) or not begun:
        raise ConfigError("continue_final_message is true: the last message has no text")
    marked = begun + _HERE
    if isinstance(content, list):
        last = {**last, "content": [*content[:-1], {**content[-1], "text": marked}]}
    else:
        last = {**last, "content": marked}
    messages = (*before, last)
    text = render(template, replace(conversation, messages=messages, continues=False))
    prompt, mark, rest = text.rpartition(_HERE.strip())
    if not mark or begun.strip() not in prompt:
        raise ConfigError(
            "continue_final_message is true: the chat template does not write the last message as "
            "it is"
        )
    return prompt if rest.startswith(" ") else prompt.rstrip()


@lru_cache(maxsize=32)
def compiled(text: str) -> jinja2.Template:
    """Return a template as a program; raises TemplateSyntaxError."""
    return _environment().from_string(text)


@lru_cache(maxsize=32)
def literals(text: str) -> str:
    """Return every text that a template may write, one after the other."""
    tree = _environment().parse(text)
    written = {node.data for node in tree.find_all(nodes.TemplateData)}
    return "\0".join(written | set(_words(tree.find_all(nodes.Const))))


@lru_cache(maxsize=32)
def searched(text: str) -> frozenset[str]:
    """Return the texts that a template looks for in messages, such as `</think>`."""
    tree = _environment().parse(text)
    found: list[nodes.Node] = []
    for test in tree.find_all(nodes.Compare):
        found += [test.expr] if any(o.op in ("in", "notin") for o in test.ops) else []
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in _SEARCHES:
            found += call.args
    for applied in tree.find_all(nodes.Filter):
        found += applied.args if applied.name == "replace" else []
    return frozenset(_words(found))


def _words(found: Iterator[Any] | Sequence[Any]) -> Iterator[str]:
    return (n.value for n in found if isinstance(n, nodes.Const) and isinstance(n.value, str))


def _prepared(message: Message, template: str) -> Message:
    """Return a message in the form that a template reads.

    As transformers 5: without keys whose value is null, and with reasoning under both names.
    Content is a text or a list of parts: it is given in the other form only if the template cannot
    read the given one.
    """
    kept = {key: value for key, value in message.items() if value is not None}
    content = kept.get("content")
    if isinstance(content, list) and not _reads(template, parts=True):
        kept["content"] = "\n".join(part["text"] for part in content)
    if isinstance(content, str) and _reads(template, parts=True) and not _reads(template):
        kept["content"] = [{"type": "text", "text": content}]
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    if reasoning is None:
        return kept
    return {"thinking": reasoning, **kept, "reasoning_content": reasoning}


@lru_cache(maxsize=64)
def _reads(template: str, *, parts: bool = False) -> bool:
    """Tell whether a template writes the text of a user's content, and nothing of its form."""
    content = [{"type": "text", "text": _PROBE}] if parts else _PROBE
    messages = [{"role": "user", "content": content}]
    try:
        written = compiled(template).render(**_NO_TOKENS, messages=messages)
    except Exception:  # of any kind: the template is not ours
        return not parts
    return _PROBE in written and "'text'" not in written and '"text"' not in written


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_refuse, strftime_now=_now, dict=_Dict(), namespace=_Names
    )
    return environment


class _Generation(Extension):
    """`{% generation %}`: marks an assistant's answer for training; here its text only."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's form

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON without jinja2's escapes of HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class _Dict:
    """`dict` in a template: it can be called, and has no other attributes of the type."""

    def __call__(self, *values: Any, **named: Any) -> dict[Any, Any]:
        return dict(*values, **named)

    def fromkeys(self, *values: Any) -> dict[Any, Any]:
        return dict.fromkeys(*values)


class _Names(Namespace):
    """`namespace` in a template, without names that begin with an underscore."""

    def __init__(*values: Any, **named: Any) -> None:  # `self` may be a name
        self, *rest = values
        given = dict(*rest, **named)
        for name in given:
            _require_public(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set the attribute {name!r} of a namespace")
