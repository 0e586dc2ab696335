"""YAML text into frozen dataclasses; whatever does not fit is refused with file:line and a hint.

A record declares its keys by its fields: the annotation is the type, `at_least`, `between` and
`matching` state what values are possible. Unions of records are told apart by their `method` field.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from specpipe.errors import ConfigError

T = TypeVar("T")

_SCALARS: dict[type, tuple[str, str]] = {
    str: ("tag:yaml.org,2002:str", "text"),
    bool: ("tag:yaml.org,2002:bool", "true or false"),
    int: ("tag:yaml.org,2002:int", "a whole number"),
    float: ("tag:yaml.org,2002:float", "a number"),
}


@dataclass(frozen=True)
class Bound:
    """A test that a value must pass, and the words that say so."""

    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    meaning: str = ""  # the pattern in words

    def problem(self, value: object) -> str | None:
        """Say what is wrong with `value`, or None."""
        if self.pattern is not None and not re.fullmatch(self.pattern, str(value)):
            return f"must be {self.meaning}"
        if self.low is not None and isinstance(value, (int, float)) and not value >= self.low:
            return f"must be at least {self.low:g}"
        if self.high is not None and isinstance(value, (int, float)) and not value <= self.high:
            return f"must be at most {self.high:g}"
        return None


def at_least(low: float) -> dict[str, Bound]:
    """Field metadata: the value is a number not below `low`."""
    return {"bound": Bound(low=low)}


def between(low: float, high: float) -> dict[str, Bound]:
    """Field metadata: the value is a number in [low, high]."""
    return {"bound": Bound(low=low, high=high)}


def matching(pattern: str, meaning: str) -> dict[str, Bound]:
    """Field metadata: the whole text matches the pattern, which `meaning` puts in words."""
    return {"bound": Bound(pattern=pattern, meaning=meaning)}


@dataclass(frozen=True)
class Place:
    """A line in a file, for messages."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def error(self, message: str, hint: str | None = None) -> ConfigError:
        """Return a ConfigError that begins with this place."""
        return ConfigError(f"{self}: {message}", hint=hint)


def read_record(path: Path, record: type[T]) -> tuple[T, dict[str, Place]]:
    """Read `path` as one `record`; also return where each dotted key stands.

    Raises ConfigError for a missing or unreadable file, bad YAML, an unknown key, a wrong type, a
    value out of bounds or a missing key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file", hint="give a YAML file, e.g. one of model_configs/*.yaml"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(path, line).error(f"not valid YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character #x{error.character:02x} may not stand in it"
        raise Place(path, line).error(message) from error
    if root is None:
        raise Place(path, 1).error("the file is empty")
    reader = _Reader(path, {})
    return reader.record(root, record, ""), reader.places


def parse_record(text: str, record: Any) -> Any:
    """Parse YAML or JSON text that we wrote ourselves, e.g. a parameter in a config.pbtxt."""
    place = Place(Path("<text>"), 1)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        raise place.error("the text is empty")
    return _Reader(place.file, {}).record(root, record, "")


@dataclass(frozen=True)
class _Reader:
    file: Path
    places: dict[str, Place]

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1)

    def record(self, node: yaml.Node, record: type[T], prefix: str) -> T:
        pairs = self._pairs(node, prefix)
        members = get_args(record)
        record = self._choose(node, pairs, record, prefix)
        hints = get_type_hints(record)
        fields = {field.name: field for field in dataclasses.fields(record)}  # type: ignore[arg-type]
        for key, (key_node, _) in pairs.items():
            if key not in fields:
                raise self.place(key_node).error(
                    f"unknown key '{prefix}{key}'{_suggest(key, fields)}", _owners(key, members)
                )
        values = {}
        for name, field in fields.items():
            if name in pairs:
                value_node = pairs[name][1]
                self.places[prefix + name] = self.place(pairs[name][0])
                values[name] = self.value(value_node, hints[name], field, prefix + name)
            elif field.default is MISSING and field.default_factory is MISSING:
                raise self.place(node).error(f"missing key '{prefix}{name}'")
        return record(**values)

    def value(self, node: yaml.Node, hint: Any, field: Field[Any], key: str) -> Any:
        bare, optional = _strip_none(hint)
        if node.tag == "tag:yaml.org,2002:null":
            if optional:
                return None
            raise self.place(node).error(f"'{key}' has no value")
        if _is_record(bare):
            return self.record(node, bare, key + ".")
        if get_origin(bare) in (Union, types.UnionType):  # a word or a list
            kind = tuple if isinstance(node, yaml.SequenceNode) else Literal
            bare = next(member for member in get_args(bare) if get_origin(member) is kind)
        if get_origin(bare) is Literal:
            return self._choice(node, get_args(bare), key)
        if get_origin(bare) is tuple:
            return self._items(node, get_args(bare)[0], field, key)
        if get_origin(bare) is dict or get_origin(bare) is Mapping:
            item = get_args(bare)[1]
            pairs = self._pairs(node, key + ".")
            return {k: self._scalar(v, item, f"{key}.{k}") for k, (_, v) in pairs.items()}
        value = self._scalar(node, bare, key)
        bound: Bound | None = field.metadata.get("bound")
        problem = bound.problem(value) if bound else None
        if problem:
            raise self.place(node).error(f"'{key}' is {value!r}: {problem}")
        return value

    def _pairs(self, node: yaml.Node, prefix: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            where = f"'{prefix.rstrip('.')}'" if prefix else "the file"
            raise self.place(node).error(f"{where} must be a mapping of keys to values")
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in pairs:
                raise self.place(key_node).error(f"'{prefix}{key}' is given twice")
            pairs[key] = (key_node, value_node)
        return pairs

    def _choose(
        self,
        node: yaml.Node,
        pairs: Mapping[str, tuple[yaml.Node, yaml.Node]],
        record: Any,
        prefix: str,
    ) -> Any:
        """Pick the member of a union of records by its `method` field."""
        members = [m for m in get_args(record) if m is not type(None)]
        if not members:
            return record
        by_method = {_method(m): m for m in members}
        if "method" not in pairs:
            raise self.place(node).error(f"missing key '{prefix}method'", _known(by_method))
        value = pairs["method"][1]
        method = self._choice(value, tuple(by_method), prefix + "method")
        return by_method[method]

    def _choice(self, node: yaml.Node, choices: tuple[Any, ...], key: str) -> Any:
        # YAML reads a bare `none` as text, but `null` or an empty value as nothing.
        value = self._scalar(node, type(choices[0]), key)
        if value not in choices:
            raise self.place(node).error(
                f"'{key}' is {value!r}{_suggest(str(value), choices)}", _known(choices)
            )
        return value

    def _items(self, node: yaml.Node, item: Any, field: Field[Any], key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.place(node).error(f"'{key}' must be a list")
        return tuple(self.value(n, item, field, f"{key}[{i}]") for i, n in enumerate(node.value))

    def _scalar(self, node: yaml.Node, kind: Any, key: str) -> Any:
        tag, words = _SCALARS[kind]
        tags = {tag, _SCALARS[int][0]} if kind is float else {tag}
        if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
            scalar = isinstance(node, yaml.ScalarNode)
            seen = repr(node.value) if scalar else "a list or mapping"
            quotes = "; put it in quotes" if scalar and kind is str else ""
            raise self.place(node).error(f"'{key}' is {seen}: must be {words}{quotes}")
        value = yaml.SafeLoader("").construct_object(node)
        return float(value) if kind is float else value


def _strip_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    members = [m for m in get_args(hint) if m is not type(None)]
    optional = len(members) < len(get_args(hint))
    return (members[0] if len(members) == 1 else typing.Union[tuple(members)]), optional  # noqa: UP007


def _is_record(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return all(dataclasses.is_dataclass(m) for m in get_args(hint))
    return dataclasses.is_dataclass(hint)


def _method(record: Any) -> str:
    return str(get_args(get_type_hints(record)["method"])[0])


def _owners(key: str, members: tuple[Any, ...]) -> str | None:
    """Name the methods that do have `key`, if any has."""
    records = [member for member in members if dataclasses.is_dataclass(member)]
    owners = [_method(r) for r in records if key in {f.name for f in dataclasses.fields(r)}]
    return f"it is a key of method {', '.join(owners)}" if owners else None


def _suggest(word: str, known: typing.Iterable[Any]) -> str:
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _known(choices: typing.Iterable[Any]) -> str:
    return "known: " + ", ".join(str(c) for c in choices)
