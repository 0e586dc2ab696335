"""`.bin` and `.pt` files: pickles that hold tensors and nothing that runs.

torch reads them with `weights_only`. Files of torch 1.6 and later are mapped; older ones, which
are no zip archives, are held in memory.
"""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from specpipe.checkpoint.plain_files import refuse_stand_ins
from specpipe.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

_SAFE = "convert the checkpoint to safetensors; pickles with code are never run"


class PickledFile(dict[str, "torch.Tensor"]):
    """The tensors of a file, by their names; see `TensorFile`."""

    def __init__(self, path: Path) -> None:
        """Open a file; raises ConfigError if it holds anything but tensors."""
        super().__init__(_tensors(path))

    def close(self) -> None:
        """Forget the tensors."""
        self.clear()

    def names(self) -> set[str]:
        """Return the name of every tensor."""
        return set(self)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape; raises KeyError if there is none."""
        return tuple(self[name].shape)

    def dtype(self, name: str) -> str:
        """Return a tensor's element type as torch spells it; raises KeyError if there is none."""
        return str(self[name].dtype).removeprefix("torch.")

    def read(self, name: str) -> "torch.Tensor":
        """Return one tensor; raises KeyError if there is none."""
        return self[name]

    def rows(self, name: str, begin: int, end: int) -> "torch.Tensor":
        """Return the slices [begin, end) of a tensor's first dimension."""
        return self[name][begin:end]


def _tensors(path: Path) -> "dict[str, torch.Tensor]":
    import torch

    refuse_stand_ins([path])
    mapped = zipfile.is_zipfile(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        raise ConfigError(
            f"{path}: cannot be read as plain tensors: {(str(error).splitlines() or [''])[0]}",
            hint=_SAFE,
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds {type(found).__name__}, not tensors by name", hint=_SAFE)
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ConfigError(
                f"{path}: {name!r} is {type(value).__name__}, not a tensor",
                hint="save the model's state_dict by itself: torch.save(model.state_dict(), FILE)",
            )
    return found
