"""Model families: how one Hugging Face architecture becomes TensorRT-LLM names and shapes.

To add a family, write one file with a `FAMILY` and add one line to `FAMILIES`.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specpipe.contracts import Dtype, ModelConfig
from specpipe.errors import Unsupported

FAMILIES: dict[str, str] = {  # HF `architectures[0]` -> module:attribute
    "LlamaForCausalLM": "specpipe.checkpoint.families.llama:FAMILY",
}

HfConfig = Mapping[str, Any]  # config.json as parsed; read only by `Family.read_config`


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output: the sources stacked along dimension 0."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Family:
    """What conversion must know about an architecture; all of it values and pure functions."""

    read_config: Callable[[HfConfig, Dtype], ModelConfig]  # raises Unsupported
    tensors: Callable[[ModelConfig], list[TensorPlan]]
    extra_config: Callable[[ModelConfig], dict[str, Any]]  # further keys of config.json
    ignored: Callable[[str, ModelConfig], bool]  # source tensors that may be left out


def find_family(config: HfConfig) -> Family:
    """Return the family of a parsed HF config.json.

    Raises Unsupported for an architecture without an entry in `FAMILIES`.
    """
    names = config.get("architectures") or ["(none named)"]
    if names[0] not in FAMILIES:
        raise Unsupported(
            f"the architecture {names[0]} has no converter",
            hint=f"known: {', '.join(FAMILIES)}; a family is one file in checkpoint/families/",
        )
    module, attribute = FAMILIES[names[0]].split(":")
    family: Family = getattr(importlib.import_module(module), attribute)
    return family
