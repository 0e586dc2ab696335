"""Reads YAML text into frozen dataclasses; refuses wrong values with file:line and a hint.

A record declares its keys by its fields: the annotation is the type, and the metadata (`keys`)
states possible values and former names. Unions of records are told apart by their `method` field.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from specpipe.config.keys import Bound
from specpipe.config.yaml_nodes import (
    Pair,
    Place,
    compose,
    pairs_of,
    place_of,
    read_text,
    shorten,
    value_of,
)
from specpipe.core.errors import ConfigError

T = TypeVar("T")

SIMILAR = 0.65  # of difflib's ratio, from which a known word is suggested; vllm and llmapi: 0.6
ANCHORS = "x-"  # keys of the whole file that begin so hold anchors, and are not read
_SCALARS: dict[type, tuple[str, str]] = {
    str: ("tag:yaml.org,2002:str", "text"),
    bool: ("tag:yaml.org,2002:bool", "true or false"),
    int: ("tag:yaml.org,2002:int", "a whole number"),
    float: ("tag:yaml.org,2002:float", "a number"),
}


@dataclass(frozen=True)
class Reading(Generic[T]):
    """A record that was read from a file."""

    record: T
    places: Mapping[str, Place]  # the line of every dotted key that was given
    remarks: tuple[str, ...]  # each former spelling in the file, with its line and the present one


def read_record(path: Path, record: type[T]) -> Reading[T]:
    """Read `path` as one `record`.

    Raises ConfigError for a missing or unreadable file, bad YAML, an unknown key, a wrong type, a
    value out of bounds or a missing key.
    """
    root = compose(read_text(path), path)
    reader = _Reader(path, {}, [])
    return Reading(reader.record(root, record, ""), reader.places, tuple(reader.remarks))


def parse_record(text: str, record: Any) -> Any:
    """Parse YAML or JSON text that we wrote ourselves, e.g. a parameter in a config.pbtxt."""
    file = Path("<text>")
    return _Reader(file, {}, []).record(compose(text, file), record, "")


@dataclass(frozen=True)
class _Reader:
    file: Path
    places: dict[str, Place]
    remarks: list[str]

    def place(self, node: yaml.Node) -> Place:
        return place_of(node, self.file)

    def record(self, node: yaml.Node, record: type[T], prefix: str) -> T:
        pairs = pairs_of(node, self.file, prefix)
        members = get_args(record)
        record = self._choose(node, pairs, record, prefix)
        hints = get_type_hints(record)
        fields = _keys(record)
        pairs = self._renamed(pairs, fields, prefix)
        for key, (key_node, _) in pairs.items():
            if key not in fields and (prefix or not key.startswith(ANCHORS)):
                method = _method(record) if members else ""
                raise self.unknown(key_node, prefix, fields, members, method)
        values = {}
        for name, field in fields.items():
            if name in pairs:
                value_node = pairs[name][1]
                self.places[prefix + name] = self.place(pairs[name][0])
                values[name] = self.value(value_node, hints[name], field, prefix + name)
            elif field.default is MISSING and field.default_factory is MISSING:
                raise self.place(node).error(f"missing key '{prefix}{name}'")
        return record(**values)

    def _renamed(
        self, pairs: Mapping[str, Pair], fields: Mapping[str, Field[Any]], prefix: str
    ) -> dict[str, Pair]:
        """Return `pairs` with the present names of keys and values, and remark on former ones."""
        found = dict(pairs)
        for name, field in fields.items():
            old = field.metadata.get("formerly")
            if old in found and old not in fields:
                self._rename(found, old, name, prefix)
            if name in found and isinstance(found[name][1], yaml.ScalarNode):
                keys = field.metadata.get("values_formerly", {}).get(found[name][1].value)
                found = self._respelled(found, name, keys, prefix) if keys else found
        return found

    def _rename(self, pairs: dict[str, Pair], old: str, new: str, prefix: str) -> None:
        node = pairs[old][0]
        if new in pairs:
            raise self.place(node).error(
                f"'{prefix}{old}' is the former name of '{prefix}{new}', which is given too",
                f"remove '{old}'",
            )
        self._remark(node, prefix + old, prefix + new)
        pairs[new] = pairs.pop(old)

    def _respelled(
        self, pairs: Mapping[str, Pair], name: str, keys: Mapping[str, str], prefix: str
    ) -> dict[str, Pair]:
        """Return `pairs` with `keys` in place of the value of `name`; keys that are given stay."""
        node, value = pairs[name]
        spelled = ", ".join(f"{prefix}{key}: {text}" for key, text in keys.items())
        self._remark(node, f"{prefix}{name}: {value.value}", spelled)
        now = {key: (node, compose(text, self.file)) for key, text in keys.items()}
        return {**now, **pairs, name: now[name]}

    def _remark(self, node: yaml.Node, old: str, new: str) -> None:
        self.remarks.append(f"{self.place(node)}: '{old}' is now '{new}'")

    def unknown(
        self,
        node: yaml.Node,
        prefix: str,
        fields: Mapping[str, object],
        members: tuple[Any, ...],
        method: str,
    ) -> ConfigError:
        key = str(node.value)
        if owners := _owners(key, members):
            return self.place(node).error(
                f"method {method} does not take the key '{prefix}{key}'",
                f"it is a key of these methods: {', '.join(owners)}",
            )
        close = _suggest(key, fields)
        hint = None if close else _known(fields)
        return self.place(node).error(f"unknown key '{prefix}{shorten(key)}'{close}", hint)

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
        if choices := field.metadata.get("choices"):
            return self._choice(node, choices, key)
        if get_origin(bare) is tuple:
            return self._items(node, get_args(bare)[0], field, key)
        if get_origin(bare) is dict or get_origin(bare) is Mapping:
            item = get_args(bare)[1]
            pairs = self._items_renamed(pairs_of(node, self.file, key + "."), field, key + ".")
            self.places.update({f"{key}.{k}": self.place(n) for k, (n, _) in pairs.items()})
            return {k: self._scalar(v, item, f"{key}.{k}") for k, (_, v) in pairs.items()}
        value = self._scalar(node, bare, key)
        bound: Bound | None = field.metadata.get("bound")
        problem = bound.problem(value) if bound else None
        if problem:
            raise self.place(node).error(f"'{key}' is {shorten(repr(value))}: {problem}")
        return value

    def _items_renamed(
        self, pairs: Mapping[str, Pair], field: Field[Any], prefix: str
    ) -> dict[str, Pair]:
        found = dict(pairs)
        for old, new in field.metadata.get("items_formerly", {}).items():
            if old in found:
                self._rename(found, old, new, prefix)
        return found

    def _choose(
        self,
        node: yaml.Node,
        pairs: Mapping[str, Pair],
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
                f"'{key}' is {shorten(repr(value))}{_suggest(str(value), choices)}",
                _known(choices),
            )
        return value

    def _items(self, node: yaml.Node, item: Any, field: Field[Any], key: str) -> tuple[Any, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.place(node).error(f"'{key}' must be a list")
        return tuple(self.value(n, item, field, f"{key}[{i}]") for i, n in enumerate(node.value))

    def _scalar(self, node: yaml.Node, kind: Any, key: str) -> Any:
        tag, words = _SCALARS[kind]
        tags = {tag, _SCALARS[int][0]} if kind is float else {tag}
        scalar = isinstance(node, yaml.ScalarNode)
        seen = shorten(repr(node.value)) if scalar else "a list or mapping"
        try:
            if not isinstance(node, yaml.ScalarNode) or node.tag not in tags:
                raise ValueError("of another kind")
            value = kind(value_of(node))
            if kind is float and not math.isfinite(value):
                raise ValueError("not finite")
        except (ValueError, OverflowError) as error:
            quotes = "; put it in quotes" if scalar and kind is str else ""
            raise self.place(node).error(f"'{key}' is {seen}: must be {words}{quotes}") from error
        return value


def _keys(record: Any) -> dict[str, Field[Any]]:
    """Return the fields of a record that a file may give."""
    fields = dataclasses.fields(record)
    return {field.name: field for field in fields if field.metadata.get("key", True)}


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


def _owners(key: str, members: tuple[Any, ...]) -> list[str]:
    """Return the methods that take `key`."""
    records = [member for member in members if dataclasses.is_dataclass(member)]
    return [_method(r) for r in records if key in {f.name for f in dataclasses.fields(r)}]


def _suggest(word: str, known: typing.Iterable[Any]) -> str:
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=SIMILAR)
    return f"; did you mean '{close[0]}'?" if close else ""


def _known(choices: typing.Iterable[Any]) -> str:
    return "known: " + ", ".join(str(c) for c in choices)
