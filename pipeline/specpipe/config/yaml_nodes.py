"""Reads YAML text into nodes with line numbers: anchors, merges, bounds on size and depth.

Numbers are those of YAML 1.2: `1e-3` is a number, and neither `010` nor `20:48` is one, which
YAML 1.1 reads as 8 and 1248.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from specpipe.core.errors import ConfigError

MOST_BYTES = 2**18
MOST_NODES = 20_000  # values in one file, with every alias written out
DEEPEST = 20  # mappings and lists in each other, likewise

_TAG = "tag:yaml.org,2002:"
MERGE = _TAG + "merge"
_NUMBERS = {
    _TAG + "int": r"[-+]?(?:0x[0-9a-fA-F]+|0|[1-9][0-9_]*)",
    _TAG + "float": r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
}
Pair = tuple[yaml.Node, yaml.Node]


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


def place_of(node: yaml.Node, file: Path) -> Place:
    """Return where a node begins; of an alias, where its anchor stands."""
    return Place(file, node.start_mark.line + 1)


def read_text(path: Path) -> str:
    """Return the text of a YAML file; raises ConfigError if it is missing, no text, or too long."""
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file", hint="give a YAML file, e.g. one of model_configs/*.yaml"
        ) from error
    except IsADirectoryError as error:
        names = [str(found) for found in sorted(path.glob("*.yaml"))[:3]]
        raise ConfigError(
            f"{path} is a folder, not a YAML file",
            hint=f"give a file, e.g. {' or '.join(names)}" if names else "give a file",
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(raw) > MOST_BYTES:
        raise ConfigError(
            f"{path} is larger than {MOST_BYTES // 1024} KiB, the most that a config may have",
            hint="give a YAML file, e.g. one of model_configs/*.yaml",
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Place(path, line).error("cannot be read: it is not UTF-8") from error


def compose(text: str, file: Path) -> yaml.Node:
    """Return the root node of a YAML text; `file` is for messages.

    Raises ConfigError for bad YAML, an empty text, a value inside itself, and more values or levels
    than a config can need.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(file, line).error(f"not valid YAML: {_problem(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character #x{error.character:02x} may not stand in it"
        raise Place(file, line).error(message) from error
    if root is None:
        raise Place(file, 1).error("the file is empty")
    return root


def pairs_of(node: yaml.Node, file: Path, prefix: str = "") -> dict[str, Pair]:
    """Return key and value nodes of a mapping, those that `<<` merges in included.

    Its own keys win over merged ones, and earlier merged mappings over later ones. Raises
    ConfigError for what is no mapping, and for a key that is given twice.
    """
    if not isinstance(node, yaml.MappingNode):
        where = f"'{prefix.rstrip('.')}'" if prefix else "the file"
        raise place_of(node, file).error(f"{where} must be a mapping of keys to values")
    pairs: dict[str, Pair] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise place_of(key_node, file).error("a key must be a word, not a list or mapping")
        if key_node.value in pairs:
            raise place_of(key_node, file).error(
                f"'{prefix}{shorten(key_node.value)}' is given twice"
            )
        pairs[key_node.value] = (key_node, value_node)
    merge = pairs.get("<<")
    if merge is None or merge[0].tag != MERGE:
        return pairs
    own = {key: pair for key, pair in pairs.items() if key != "<<"}
    for other in _merged(merge[1], file):
        own = {**pairs_of(other, file, prefix), **own}
    return own


def _merged(node: yaml.Node, file: Path) -> Iterator[yaml.Node]:
    for other in node.value if isinstance(node, yaml.SequenceNode) else (node,):
        if not isinstance(other, yaml.MappingNode):
            raise place_of(node, file).error("'<<' must name a mapping, or a list of mappings")
        yield other


def value_of(node: yaml.ScalarNode) -> object:
    """Return the value of a scalar; raises ValueError if its tag promises what it is not."""
    try:
        return _Loader("").construct_object(node)
    except (LookupError, OverflowError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error


def shorten(text: str) -> str:
    """Return text for a message, its middle cut out if it is long."""
    return text if len(text) <= 80 else f"{text[:50]}...{text[-20:]}"


def _problem(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong; some problems complete a sentence that their context began."""
    problem = error.problem or "cannot be parsed"
    return f"{error.context}, {problem}" if problem.startswith("but ") else problem


class _Loader(yaml.SafeLoader):
    """Composes nodes; what an alias stands for counts each time that it is named."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open = 0
        self._sizes: dict[int, tuple[int, int]] = {}  # id of a whole node -> its values, levels

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node; raises ComposerError where the bounds are passed."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark, alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        self._open += 1
        self._require(self._open <= DEEPEST, f"it is more than {DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        if alias:
            self._require(id(node) in self._sizes, "this value contains itself", mark)
        elif node is not None:
            self._measure(node, mark)
        return node

    def _measure(self, node: yaml.Node, mark: yaml.Mark) -> None:
        parts = [] if isinstance(node, yaml.ScalarNode) else list(_children(node))
        inner = [self._sizes[id(part)] for part in parts]
        size = 1 + sum(count for count, _ in inner)
        levels = 1 + max((depth for _, depth in inner), default=0)
        self._require(size <= MOST_NODES, f"it has more than {MOST_NODES} values", mark)
        self._require(levels <= DEEPEST, f"it is more than {DEEPEST} levels deep", mark)
        self._sizes[id(node)] = size, levels

    def _require(self, holds: bool, problem: str, mark: yaml.Mark) -> None:
        if not holds:
            raise yaml.composer.ComposerError(None, None, problem, mark)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    for part in node.value:
        yield from part if isinstance(part, tuple) else (part,)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(f"^(?:{_NUMBERS[tag]})$") if tag in _NUMBERS else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
