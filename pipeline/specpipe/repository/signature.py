"""The tensors of the five models, once: upstream's names, so that its clients work unchanged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm", "preprocessing", "postprocessing")
_FILE = Path(__file__).with_name("tensors_1x.txt")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a model."""

    name: str
    data_type: str  # Triton's, without TYPE_: INT32, STRING, ...
    dims: tuple[int, ...]  # without the batch dimension; -1: any
    optional: bool = False
    scalar: bool = False  # the model sees [batch] instead of [batch, 1]
    ragged: bool = False


@dataclass(frozen=True)
class Signature:
    """What goes into a model and what comes out."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@cache
def signatures() -> dict[str, Signature]:
    """Return the signature of every model."""
    tables: dict[tuple[str, str], list[Tensor]] = {}
    for section, tensor in _lines(_FILE.read_text(encoding="utf-8")):
        tables.setdefault(section, []).append(tensor)
    return {
        model: Signature(tuple(tables[model, "inputs"]), tuple(tables[model, "outputs"]))
        for model in MODELS
    }


def _lines(text: str) -> Iterator[tuple[tuple[str, str], Tensor]]:
    section = ("", "")
    for line in text.splitlines():
        if line.startswith("["):
            model, side = line.strip("[]").split()
            section = (model, side)
        elif line and not line.startswith("#"):
            yield section, _tensor(line)


def _tensor(line: str) -> Tensor:
    name, kind, *marks = line.split()
    match = re.fullmatch(r"([A-Z0-9]+)\[([-0-9,]*)\]", kind)
    if match is None:
        raise ValueError(f"not a tensor: {line}")
    dims = tuple(int(d) for d in match[2].split(","))
    return Tensor(name, match[1], dims, "optional" in marks, "scalar" in marks, "ragged" in marks)
