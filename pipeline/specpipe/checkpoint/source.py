"""Reading Hugging Face checkpoints: safetensors, `.bin` (weights only) and GGUF.

Tensors are read one at a time, in pieces, so memory holds none of them whole; only files of torch
before 1.6 are held as a whole.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from specpipe.checkpoint.gguf.config import config_of
from specpipe.checkpoint.gguf.header import read_header
from specpipe.checkpoint.gguf.tensors import GgufTensors
from specpipe.checkpoint.pickled import PickledFile
from specpipe.checkpoint.plain_files import read_json, refuse_stand_ins
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.weight_files import passed_over, refuse_adapter, weight_files
from specpipe.core.digests import Stamp, stamp
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


# The files that decide a conversion, in addition to the weights.
SMALL_FILES = (
    "config.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
FURTHER_TEMPLATES = "additional_chat_templates"  # a folder of chat templates, NAME.jinja each
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


def text_tensors(reader: TensorReader, outer: Mapping[str, str]) -> TensorReader:
    """Name the tensors of a text model among several as those of a text model by itself.

    `outer` maps the prefixes of the former names to those of the latter.
    """

    def own(name: str) -> str:
        pairs = ((a, b) for a, b in outer.items() if name.startswith(a))
        return next((b + name.removeprefix(a) for a, b in pairs), name)

    names = {own(name): name for name in reader.names()}
    return Renamed(reader, names) if names.keys() != reader.names() else reader


def with_prefix(reader: TensorReader, prefix: str) -> TensorReader:
    """Put `prefix` before the names of a checkpoint that was saved without its head; if any was."""
    names = reader.names()
    if not prefix or any(name.startswith(prefix) for name in names):
        return reader
    heads = ("lm_head.", "embed_out.", "output.", "medusa_head")
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

    @property
    def passed_over(self) -> tuple[str, ...]:
        """Return the files with weights, or the names of such files, that are not read."""
        return passed_over(self.weights)

    @property
    def config_file(self) -> Path:
        """Return the file that `hf_config` was read from."""
        return self.path if self.path.suffix == ".gguf" else self.path / "config.json"

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
        refuse_stand_ins([path])
        stamps = {path: stamp(path)}
        return Source(path, (path,), config_of(read_header(path)), stamps)
    if not path.is_dir():
        raise ConfigError(f"{path}: neither a folder nor a .gguf file")
    weights = weight_files(path)
    refuse_adapter(path)
    return open_folder(path, weights)


def open_folder(path: Path, weights: tuple[Path, ...], origin: Origin | None = None) -> Source:
    """Find the other files of a checkpoint whose weights are given; some weights may be missing."""
    stamps = _stamps(path, weights)
    refuse_stand_ins(stamps)
    return Source(path, weights, read_json(path / "config.json"), stamps, origin)


def _stamps(path: Path, weights: tuple[Path, ...]) -> dict[Path, Stamp]:
    """Return the stamps of the weights that are there, and of the small files in a folder."""
    there = [file for file in weights if file.is_file()]
    return {file: stamp(file) for file in [*there, *_small_files(path)]}


def _small_files(folder: Path) -> list[Path]:
    older = () if (folder / "tokenizer.json").is_file() else BEFORE_TOKENIZER_JSON
    files = [folder / name for name in (*SMALL_FILES, *older)]
    files += sorted((folder / FURTHER_TEMPLATES).glob("*.jinja"))
    return [file for file in files if file.is_file()]


@contextmanager
def read_tensors(
    weights: tuple[Path, ...], opening: Opening = SafetensorsFile
) -> Iterator[TensorReader]:
    """Open the weights of a source for reading, whatever their format.

    `opening` is how safetensors files are opened.
    """
    kinds: dict[str, Opening] = {".gguf": GgufTensors, ".bin": PickledFile, ".pt": PickledFile}
    with contextlib.ExitStack() as stack:
        opened = ((path, kinds.get(path.suffix, opening)(path)) for path in weights)
        files = [(path, stack.enter_context(closing(file))) for path, file in opened]
        yield files[0][1] if len(files) == 1 else _Shards(files)


class _Shards:
    """Several files, each tensor in one of them."""

    def __init__(self, files: Iterable[tuple[Path, TensorReader]]) -> None:
        self._files: dict[str, TensorReader] = {}
        places: dict[str, str] = {}
        for path, file in files:
            for name in file.names():
                if name in places:
                    raise ConfigError(
                        f"{name} is in {places[name]} and in {path.name}",
                        hint="the folder holds files of two models; fetch it again",
                    )
                places[name] = path.name
                self._files[name] = file

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


def known_model(model: str) -> dict[str, Any] | None:
    """Return the config.json of a well-known Hugging Face id, for planning without a download."""
    known: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("known_models.json"))
    return known.get(model)
