"""Model families: how one Hugging Face architecture becomes TensorRT-LLM names and shapes.

To add a family, write one file with a `FAMILY` and add one line to `FAMILIES`.

Not here: reading of tensors, and their division among ranks; a family only names them.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Literal

from specpipe.core.errors import Unsupported
from specpipe.core.model import Dtype, ModelConfig

if TYPE_CHECKING:
    import torch

FAMILIES: dict[str, str] = {  # HF `architectures[0]` -> module:attribute
    "LlamaForCausalLM": "specpipe.checkpoint.families.llama:FAMILY",
    "MistralForCausalLM": "specpipe.checkpoint.families.mistral:FAMILY",
    "MixtralForCausalLM": "specpipe.checkpoint.families.mixtral:FAMILY",
    "Qwen2ForCausalLM": "specpipe.checkpoint.families.qwen2:FAMILY",
    "Qwen2MoeForCausalLM": "specpipe.checkpoint.families.qwen2_moe:FAMILY",
    "Qwen3ForCausalLM": "specpipe.checkpoint.families.qwen3:FAMILY",
    "GemmaForCausalLM": "specpipe.checkpoint.families.gemma:FAMILY",
    "Gemma2ForCausalLM": "specpipe.checkpoint.families.gemma2:FAMILY",
    "PhiForCausalLM": "specpipe.checkpoint.families.phi:FAMILY",
    "Phi3ForCausalLM": "specpipe.checkpoint.families.phi3:FAMILY",
    "GPT2LMHeadModel": "specpipe.checkpoint.families.gpt2:FAMILY",
    "GPTNeoXForCausalLM": "specpipe.checkpoint.families.gpt_neox:FAMILY",
    "Starcoder2ForCausalLM": "specpipe.checkpoint.families.starcoder2:FAMILY",
    "FalconForCausalLM": "specpipe.checkpoint.families.falcon:FAMILY",
    "InternLM2ForCausalLM": "specpipe.checkpoint.families.internlm2:FAMILY",
}

# Element types as torch spells them; quantised checkpoints have more than the three of Dtype.
StoredDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "uint8"]
HfConfig = Mapping[str, Any]  # config.json as parsed; read only by `Family.read_config`


Stage = Literal["first", "last", "every"]


class Shard(Enum):
    """How tensor parallelism cuts a tensor; T ranks, dimension 0 is that of the rows."""

    REPLICATED = auto()  # every rank holds all of it
    ROWS = auto()  # dimension 0 in T parts
    COLUMNS = auto()  # dimension 1 in T parts
    QKV = auto()  # rows of the query, key and value heads, each cut; few KV heads are repeated
    GATED = auto()  # dimension 0 holds two halves, each cut in T parts
    HEAD = auto()  # rows of the vocabulary, padded with zeros to a multiple of T, in T parts
    EMBEDDING = auto()  # [V, D], held by all ranks unless parallel embedding is asked for
    QKV_COLUMNS = auto()  # dimension 1 as QKV cuts dimension 0
    GATED_COLUMNS = auto()  # dimension 1 as GATED cuts dimension 0
    EXPERTS = auto()  # [E, ..]: experts over the expert ranks, each of them whole
    EXPERT_ROWS = auto()  # [E, I, ..]: experts over the expert ranks, I cut among those that share
    EXPERT_COLUMNS = auto()  # [E, D, I]: the same
    EXPERT_GATED = auto()  # [E, 2 * I, D]: the same, each half of 2 * I cut
    EXPERT_GATED_COLUMNS = auto()  # [E, .., 2 * I]: the same
    EXPERT_INPUTS = auto()  # [I], for all experts: cut as theirs


Join = Callable[[Sequence["torch.Tensor"]], "torch.Tensor"]


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output, whole, and how it is made and cut.

    Without a `join` the sources follow each other along dimension 0, and the result is viewed as
    `shape`: stacked experts are so made of their matrices. A join sees all the sources whole.
    With `slices` the tensor is theirs, stacked along a new first dimension and made one by one.
    """

    name: str  # with the global index of its layer
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    shard: Shard = Shard.REPLICATED
    layer: int | None = None  # None: before all layers, or behind them
    stage: Stage = "first"  # of the pipeline; for tensors without a layer
    join: Join | None = None  # pure; for what is more than concatenation
    slices: tuple["TensorPlan", ...] = ()  # their sources are those of the whole
    dtype: StoredDtype | None = None  # None: that of the checkpoint


@dataclass(frozen=True)
class Family:
    """What conversion must know about an architecture; all of it values and pure functions."""

    read_config: Callable[[HfConfig, Dtype], ModelConfig]  # raises Unsupported
    tensors: Callable[[ModelConfig], list[TensorPlan]]
    extra_config: Callable[[ModelConfig], dict[str, Any]]  # further keys of config.json
    ignored: Callable[[str, ModelConfig], bool]  # source tensors that may be left out
    base_prefix: str = "model."  # of the names without the head; some releases leave it out
    cuts_embedding: bool = False  # upstream's class insists on it wherever tp_size > 1


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
