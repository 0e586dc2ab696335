"""EAGLE-3 drafters, which TensorRT-LLM's LLM API reads as they are; see `drafter_method`.

`fc` makes the drafter's input of several hidden states of the target. `d2t` has, for every token of
the drafter's own vocabulary, its distance to the target's; `t2d` marks those of the target.

Not here: conversion; no backend needs one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from specpipe.checkpoint.drafter_method import drafter_method, refuse_other_drafters
from specpipe.checkpoint.source import read_tensors
from specpipe.checkpoint.weight_files import weight_files
from specpipe.core.errors import ConfigError, Rejection
from specpipe.core.model import ModelConfig

_EXPECTED = "an EAGLE-3 checkpoint: config.json with model.safetensors or pytorch_model.bin"


@dataclass(frozen=True)
class Eagle3Source:
    """The shapes of a drafter on disk."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def check(self, model: ModelConfig) -> Iterator[Rejection]:
        """Yield every reason why it cannot draft for a target."""
        hint = "use an EAGLE-3 checkpoint that was trained for this target"
        read, size = self.shapes.get("fc.weight", (0,))[-1], model.hidden_size
        if read % size:
            yield Rejection(
                f"{self.path}: fc.weight reads {read} values, which are no hidden states of the "
                f"target, each of {size}",
                hint,
            )
        for what, (ours, theirs) in self._compared(model).items():
            if ours != theirs:
                yield Rejection(f"{self.path}: {what} {ours}, the target has {theirs}", hint)
        own, table = self.shapes.get("lm_head.weight"), self.shapes.get("d2t")
        if own and table and own[0] != table[0]:
            yield Rejection(
                f"{self.path}: lm_head has {own[0]} tokens, d2t {table[0]}",
                "fetch the checkpoint again",
            )

    def _compared(self, model: ModelConfig) -> dict[str, tuple[int, int]]:
        found = {}
        for name in ("embed_tokens.weight", "t2d"):
            if shape := self.shapes.get(name):
                found[f"{name} has a vocabulary of"] = (shape[0], model.vocab_size)
        return found


def open_eagle3(path: Path) -> Eagle3Source:
    """Find an EAGLE-3 drafter in a folder; reads names and shapes only.

    Raises Unsupported for a drafter of another method, ConfigError for a folder without a drafter.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: not a folder", hint=f"expected {_EXPECTED}")
    with read_tensors(weight_files(path, expected=_EXPECTED)) as reader:
        refuse_other_drafters(path, reader.names(), "eagle3", "an EAGLE-3 drafter")
        if drafter_method(path, reader.names()) is None:
            raise ConfigError(f"{path}: no EAGLE-3 drafter", hint=f"expected {_EXPECTED}")
        return Eagle3Source(path, {name: reader.shape(name) for name in reader.names()})
