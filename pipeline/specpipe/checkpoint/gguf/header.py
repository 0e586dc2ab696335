"""The header of a GGUF file: its metadata, and where its tensors lie.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Lists of text (tokens, merges)
are skipped, so that a header of megabytes is read in a fraction of a second.
"""

import importlib.util
import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.core.errors import ConfigError, Unreadable, Unsupported

Value = int | float | bool | str | tuple[int | float | bool, ...]
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_TEXT, _ARRAY = 8, 9
# type of a value -> its letter in `struct`
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MOST = 1 << 32  # no name, list or table is longer


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in its file, and in which of ggml's types."""

    shape: tuple[int, ...]  # as torch has it
    kind: int  # a number of `GGMLQuantizationType`
    begin: int  # in bytes, from the start of the file


@dataclass(frozen=True)
class GgufHeader:
    """What a file states about itself."""

    path: Path
    facts: Mapping[str, Value]  # the metadata; lists of text are empty
    counts: Mapping[str, int]  # of the lists of text
    tensors: Mapping[str, GgufTensor]

    def fact(self, key: str) -> Value | None:
        """Return the value of `{architecture}.{key}`; None if there is none."""
        return self.facts.get(f"{self.architecture}.{key}")

    @property
    def architecture(self) -> str:
        """The name that llama.cpp has for the kind of model."""
        return str(self.facts["general.architecture"])


def read_header(path: Path) -> GgufHeader:
    """Read the header of a file.

    Raises Unreadable if the machine refuses that, Unsupported for a version or a type that is not
    known and without the package `gguf`, ConfigError if the file is not a whole GGUF file.
    """
    if importlib.util.find_spec("gguf") is None:
        raise Unsupported(
            f"{path}: reading GGUF needs the packages gguf and accelerate",
            hint="in a clone of specpipe: pip install -e '.[gguf]'",
        )
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            return _Reading(path, content).header()
    except OSError as error:
        raise Unreadable(
            f"{path}: cannot be read: {error.strerror}",
            hint="check that the file is there, its permissions and its disk",
        ) from error
    except (ValueError, KeyError, struct.error) as error:
        raise ConfigError(
            f"{path}: not a whole GGUF file: {error}",
            hint="fetch the file again; it may have been cut short",
        ) from error


class _Reading:
    """One pass over a header, from its first byte to its last."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path, self._content, self._at = path, content, 0
        self._counts: dict[str, int] = {}

    def header(self) -> GgufHeader:
        if self._content[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        version = self._number("I")
        if version not in _VERSIONS:
            raise Unsupported(
                f"{self._path}: version {version} of GGUF; known are 2 and 3 of little endian",
                hint="convert the model again with a present release of llama.cpp",
            )
        tensors, facts = self._count(), self._count()
        values = dict(self._fact() for _ in range(facts))
        if not isinstance(values.get("general.architecture"), str):
            raise ValueError("it has no general.architecture")
        entries = [self._tensor() for _ in range(tensors)]
        align = values.get("general.alignment", 32)
        if not isinstance(align, int) or align <= 0:
            raise ValueError(f"an alignment of {align}")
        start = -(-self._at // align) * align
        return GgufHeader(
            self._path, values, self._counts, _placed(entries, start, len(self._content))
        )

    def _fact(self) -> tuple[str, Value]:
        key = self._text()
        return key, self._value(key, self._number("I"))

    def _value(self, key: str, kind: int) -> Value:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            return self._list(key, self._number("I"), self._count())
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}")
        value: Value = self._unpack(_NUMBERS[kind])[0]
        return value

    def _list(self, key: str, kind: int, count: int) -> Value:
        if kind in _NUMBERS:
            return self._unpack(f"{count}{_NUMBERS[kind]}")
        if kind != _TEXT:
            raise ValueError(f"a list of type {kind}")
        for _ in range(count):
            self._skip(self._count())
        self._counts[key] = count
        return ()

    def _tensor(self) -> tuple[str, GgufTensor]:
        name = self._text()
        dims = self._unpack(f"{self._number('I')}Q")
        kind, begin = self._number("I"), self._number("Q")
        return name, GgufTensor(tuple(map(int, reversed(dims))), kind, begin)

    def _text(self) -> str:
        begin = self._at + 8
        self._skip(self._count())
        return self._content[begin : self._at].decode("utf-8")

    def _count(self) -> int:
        count = self._number("Q")
        if count > _MOST:
            raise ValueError(f"a length of {count}")
        return count

    def _number(self, letter: str) -> int:
        return int(self._unpack(letter)[0])

    def _unpack(self, letters: str) -> tuple[int | float | bool, ...]:
        values = struct.unpack_from(f"<{letters}", self._content, self._at)
        self._at += struct.calcsize(f"<{letters}")
        return values

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._content):
            raise ValueError("it ends within its header")


def _placed(
    entries: Sequence[tuple[str, GgufTensor]], start: int, size: int
) -> dict[str, GgufTensor]:
    """Return the tensors with their places in the file; raises ValueError if one is not in it."""
    found: dict[str, GgufTensor] = {}
    for name, entry in entries:
        if name in found:
            raise ValueError(f"two tensors {name}")
        placed = GgufTensor(entry.shape, entry.kind, start + entry.begin)
        if placed.begin + num_bytes(placed, name) > size:
            raise ValueError(f"{name} ends behind the last of its {size} bytes")
        found[name] = placed
    return found


def num_bytes(entry: GgufTensor, name: str) -> int:
    """Return the size of a tensor; raises ValueError for a type or a shape that cannot be."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if entry.kind not in set(GGMLQuantizationType):
        raise Unsupported(
            f"{name} has a ggml type, {entry.kind}, that the installed gguf does not know",
            hint="install a newer release: pip install --upgrade gguf",
        )
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(entry.kind)]
    if not entry.shape or entry.shape[-1] % block:
        raise ValueError(f"{name} has rows of {entry.shape[-1:]} values in blocks of {block}")
    count = 1
    for dim in entry.shape:
        count *= dim
    return count // block * size
