"""Reading Hugging Face checkpoints: safetensors, `.bin` (weights only) and GGUF.

Tensors are read one at a time, those of safetensors in pieces; only GGUF, which transformers
dequantises as a whole, needs memory for the whole model.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from specpipe.checkpoint.gguf import gguf_config, gguf_tensors
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.core.digests import Stamp, stamp
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


# The files that decide a conversion, in addition to the weights.
SMALL_FILES = (
    "config.json",
    "hf_quant_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_WEIGHTS = "model.safetensors, pytorch_model.bin, their .index.json, or a .gguf file"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt")
BEFORE_TOKENIZER_JSON = ("vocab.json", "merges.txt")  # what transformers makes one of


class TensorReader(Protocol):
    """An open checkpoint: which tensors there are, and each of them on request."""

    def names(self) -> set[str]:
        """Return the name of every stored tensor."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it; raises KeyError if there is none."""
        ...

    def dtype(self, name: str) -> str:
        """Return a tensor's element type as torch spells it; raises KeyError if there is none."""
        ...

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor; raises KeyError if there is none."""
        ...

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """Return the slices [begin, end) of a tensor's first dimension."""
        ...


class TensorFile(TensorReader, Protocol):
    """An open file of tensors."""

    def close(self) -> None:
        """Close the file; nothing can be read after that."""
        ...


Opening = Callable[[Path], TensorFile]


@dataclass(frozen=True)
class Renamed:
    """The tensors of a reader under other names."""

    reader: TensorReader
    theirs: Mapping[str, str]  # new name -> name in the reader

    def names(self) -> set[str]:
        """See `TensorReader`."""
        return set(self.theirs)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `TensorReader`."""
        return self.reader.shape(self.theirs[name])

    def dtype(self, name: str) -> str:
        """See `TensorReader`."""
        return self.reader.dtype(self.theirs[name])

    def read(self, name: str) -> "torch.Tensor":
        """See `TensorReader`."""
        return self.reader.read(self.theirs[name])

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """See `TensorReader`."""
        return self.reader.rows(self.theirs[name], begin, end)


def with_prefix(reader: TensorReader, prefix: str) -> TensorReader:
    """Put `prefix` before the names of a checkpoint that was saved without its head; if any was."""
    names = reader.names()
    if not prefix or any(name.startswith(prefix) for name in names):
        return reader
    heads = ("lm_head.", "medusa_head")
    return Renamed(reader, {n if n.startswith(heads) else f"{prefix}{n}": n for n in names})


@dataclass(frozen=True)
class Origin:
    """What a folder in the hub's cache is a copy of, and which weights it does not have yet."""

    model: str  # owner/name
    commit: str
    missing: Mapping[str, int | None]  # file -> bytes; None: not known without the hub


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk that has been found, but not read."""

    path: Path  # a folder, or a .gguf file
    weights: tuple[Path, ...]  # the files that hold tensors; those of `missing` are not there
    hf_config: Mapping[str, Any]  # config.json
    stamps: Mapping[Path, Stamp]  # of all `files` that are there, from before the first was read
    origin: Origin | None = None  # None: the user's own folder or file

    @property
    def missing(self) -> Mapping[str, int | None]:
        """Return the weights that must be fetched before a tensor can be read."""
        return self.origin.missing if self.origin else {}

    def files(self) -> list[Path]:
        """Return every file that decides what a conversion writes."""
        return list(dict.fromkeys([*self.weights, *self.stamps]))

    def is_current(self) -> bool:
        """Tell whether its files are still those that were found, in the same state."""
        return _stamps(self.path, self.weights) == self.stamps


def open_source(path: Path) -> Source:
    """Find config.json and the weight files of a checkpoint; reads no tensor.

    Raises ConfigError if something is missing or is not JSON.
    """
    if path.is_file() and path.suffix == ".gguf":
        stamps = {path: stamp(path)}
        return Source(path, (path,), gguf_config(path), stamps)
    if not path.is_dir():
        raise ConfigError(f"{path}: neither a folder nor a .gguf file")
    return open_folder(path, weight_files(path))


def open_folder(path: Path, weights: tuple[Path, ...], origin: Origin | None = None) -> Source:
    """Find the other files of a checkpoint whose weights are given; some weights may be missing."""
    stamps = _stamps(path, weights)
    return Source(path, weights, read_json(path / "config.json"), stamps, origin)


def _stamps(path: Path, weights: tuple[Path, ...]) -> dict[Path, Stamp]:
    """Return the stamps of the weights that are there, and of the small files in a folder."""
    there = [file for file in weights if file.is_file()]
    return {file: stamp(file) for file in [*there, *_small_files(path)]}


def _small_files(folder: Path) -> list[Path]:
    older = () if (folder / "tokenizer.json").is_file() else BEFORE_TOKENIZER_JSON
    files = (folder / name for name in (*SMALL_FILES, *older))
    return [file for file in files if file.is_file()]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file; raises ConfigError if it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return value


def weight_files(folder: Path, *, expected: str = _WEIGHTS) -> tuple[Path, ...]:
    """Return the files of a folder that hold its tensors.

    Raises ConfigError if there are none; the hint then names the `expected` files.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return tuple(_shard(folder, index, shard) for shard in shard_names(index))
        if (folder / stem).is_file():
            return (folder / stem,)
    raise ConfigError(
        f"{folder}: no weights in this folder",
        hint=f"expected {expected}",
    )


def shard_names(index: Path) -> list[str]:
    """Return the files that an index names; raises ConfigError unless all are of its folder."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(
            f"{index}: has no 'weight_map', which names the file of every tensor",
            hint="fetch the file again; it may be of another format",
        )
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or not _is_inside(shard):
            raise ConfigError(
                f"{index}: the file of {tensor} is {shard!r}, which is no name in this folder",
                hint="do not use this checkpoint: somebody wrote the index by hand",
            )
    return sorted(set(shards.values()))


def _is_inside(name: str) -> bool:
    """Tell whether a relative path, as it is written, stays in its folder.

    Links are followed: the hub's cache is made of links, and who can write them can write files.
    """
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and (path.suffix in WEIGHT_SUFFIXES and "\\" not in name and "\0" not in name)
    )


def _shard(folder: Path, index: Path, shard: str) -> Path:
    if not (folder / shard).is_file():
        raise ConfigError(
            f"{folder / shard}: no such file, but {index.name} names it",
            hint="the download was cut short; fetch it again",
        )
    return folder / shard


@contextmanager
def read_tensors(
    weights: tuple[Path, ...], opening: Opening = SafetensorsFile
) -> Iterator[TensorReader]:
    """Open the weights of a source for reading, whatever their format.

    `opening` is how safetensors files are opened.
    """
    suffix = weights[0].suffix
    if suffix == ".gguf":
        yield _InMemory(gguf_tensors(weights[0]))
    elif suffix in (".bin", ".pt"):
        yield _Shards([_bin_tensors(path) for path in weights])
    else:
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(closing(opening(path))) for path in weights]
            yield _Shards(files)


class _InMemory(dict[str, "torch.Tensor"]):
    def names(self) -> set[str]:
        return set(self)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)

    def dtype(self, name: str) -> str:
        return str(self[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> "torch.Tensor":
        return self[name]

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        return self[name][begin:end]


class _Shards:
    """Several files, each tensor in one of them."""

    def __init__(self, files: Iterable[TensorReader]) -> None:
        self._files = {name: file for file in files for name in file.names()}

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].shape(name)

    def dtype(self, name: str) -> str:
        return self._files[name].dtype(name)

    def read(self, name: str) -> "torch.Tensor":
        return self._files[name].read(name)

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        return self._files[name].rows(name, begin, end)


def _bin_tensors(path: Path) -> _InMemory:
    import torch

    try:
        # weights_only: a pickle may hold tensors and nothing that runs.
        return _InMemory(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        raise ConfigError(
            f"{path}: cannot be read as plain tensors: {str(error).splitlines()[0]}",
            hint="convert the checkpoint to safetensors; pickles with code are never run",
        ) from error


def known_model(model: str) -> dict[str, Any] | None:
    """Return the config.json of a well-known Hugging Face id, for planning without a download."""
    known: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("known_models.json"))
    return known.get(model)
