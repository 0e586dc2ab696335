"""Model families: how one Hugging Face architecture becomes TensorRT-LLM names and shapes.

To add a family, write one file with a `FAMILY` and add one line to `FAMILIES`.

Not here: reading of tensors, and their division among ranks; a family only names them.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specpipe.checkpoint.families.keys import Keys, short
from specpipe.core.errors import ConfigError, Unsupported
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
    "GraniteForCausalLM": "specpipe.checkpoint.families.granite:FAMILY",
    "Olmo2ForCausalLM": "specpipe.checkpoint.families.olmo2:FAMILY",
    "SmolLM3ForCausalLM": "specpipe.checkpoint.families.smollm3:FAMILY",
    "Qwen3MoeForCausalLM": "specpipe.checkpoint.families.qwen3_moe:FAMILY",
    "Gemma3ForCausalLM": "specpipe.checkpoint.families.gemma3:FAMILY",
    "CohereForCausalLM": "specpipe.checkpoint.families.cohere:FAMILY",
    "Cohere2ForCausalLM": "specpipe.checkpoint.families.cohere2:FAMILY",
    "GlmForCausalLM": "specpipe.checkpoint.families.glm:FAMILY",
    "Glm4ForCausalLM": "specpipe.checkpoint.families.glm4:FAMILY",
}

MODEL_TYPES = {  # of transformers -> its architecture, for a config.json without `architectures`
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "falcon": "FalconForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
}

_FORMER_TYPES = ("RefinedWeb", "RefinedWebModel")  # of Falcon, before transformers had it
_NO_GENERATORS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForRewardModel",
    "ForMaskedLM",
    "BertModel",
)

# Of several models -> of the text model among them, which is what is converted.
TEXT_OF = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}

# Element types as torch spells them; quantised checkpoints have more than the three of Dtype.
StoredDtype = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "int8", "uint8"]
HfConfig = Mapping[str, Any]  # config.json as parsed; a family reads it as `Keys`


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
    KEYS = auto()  # dimension 0 holds the key heads, cut as QKV cuts them
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

    read_config: Callable[[Keys, Dtype], ModelConfig]  # raises ConfigError, Unsupported
    tensors: Callable[[ModelConfig], list[TensorPlan]]
    extra_config: Callable[[ModelConfig], dict[str, Any]]  # further keys of config.json
    ignored: Callable[[str, ModelConfig], bool]  # source tensors that may be left out
    defaults: Mapping[str, Any]  # of absent keys, as in transformers' config class
    aliases: Mapping[str, str] = field(default_factory=dict)  # key -> another spelling of it
    base_prefix: str = "model."  # of the names without the head; some releases leave it out
    outer_names: Mapping[str, str] = field(default_factory=dict)  # prefix in several models -> ours
    cuts_embedding: bool = False  # upstream's class insists on it wherever tp_size > 1


CONFIG = Path("config.json")


def find_family(config: HfConfig, file: Path = CONFIG) -> Family:
    """Return the family of a parsed HF config.json.

    Raises Unsupported for an architecture without an entry in `FAMILIES`, or for a model that only
    borrows its name, and what `architecture_of` and `require_generator` raise.
    """
    config, _ = text_part(config, file)
    name = architecture_of(config, file)
    require_generator(config, name, file)
    if name not in FAMILIES:
        raise Unsupported(
            f"the architecture {name} has no converter ({file})",
            hint="engine.backend: llmapi serves every model that TensorRT-LLM's LLM API knows, "
            f"without conversion; with converters: {', '.join(FAMILIES)}",
        )
    module, attribute = FAMILIES[name].split(":")
    family: Family = getattr(importlib.import_module(module), attribute)
    _require_own_type(config, name, file)
    return family


def require_generator(config: HfConfig, name: str, file: Path = CONFIG) -> None:
    """Raise ConfigError for a model that generates no text: a classifier, one for embeddings."""
    sentence = ""
    if name.endswith(_NO_GENERATORS):
        sentence = f"{name} generates no text: it classifies or embeds what it reads"
    elif config.get("is_causal") is False:
        sentence = (
            "'is_causal' is false: every token attends to the tokens after it, as in a model for "
            "embeddings, which generates no text"
        )
    if sentence:
        raise ConfigError(f"{file}: {sentence}", hint="give a model for text generation")


def _require_own_type(config: HfConfig, name: str, file: Path) -> None:
    """Raise Unsupported for a config of other code than the class that it names."""
    kind = config.get("model_type")
    if kind is not None and kind not in MODEL_TYPES and kind not in _FORMER_TYPES:
        raise Unsupported(
            f"{file}: 'model_type' is {kind!r}, which is not that of {name}: it names code of the "
            "model's own, with other keys",
            hint="use a release of the model in transformers' format, or engine.backend: llmapi",
        )


def architecture_of(config: HfConfig, file: Path = CONFIG) -> str:
    """Return the architecture of a config.json: the first of `architectures`, or by `model_type`.

    Raises ConfigError for values of the wrong type, and where both name families that differ:
    transformers builds the second.
    """
    names = Keys(config, file).words("architectures")
    kind = config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise ConfigError(f"{file}: 'model_type' is {short(kind)}: must be a name")
    by_type = MODEL_TYPES.get(kind or "")
    if not names:
        return by_type or f"(none named; model_type {kind!r})"
    if by_type not in (None, names[0]) and names[0] in FAMILIES:
        raise ConfigError(
            f"{file}: 'architectures' begins with {names[0]}, but 'model_type' is {kind!r}, which "
            f"transformers reads as {by_type}",
            hint="correct the one that is wrong",
        )
    return names[0]


def text_part(config: HfConfig, file: Path = CONFIG) -> tuple[HfConfig, str]:
    """Return the config of the text model among several, and the key that it is under, with a dot.

    Of other models: the config itself, and nothing. The outer config decides whether the head is
    the embedding, as in transformers. Raises what `architecture_of` raises.
    """
    name = architecture_of(config, file)
    if name not in TEXT_OF:
        return config, ""
    text, tied = Keys(config, file).table("text_config"), "tie_word_embeddings"
    own = {"architectures": [TEXT_OF[name]], tied: config.get(tied, True)}
    return {**text.values, **own}, text.within


def read_facts(config: HfConfig, dtype: Dtype, file: Path = CONFIG) -> ModelConfig:
    """Return the facts of a parsed config.json; every error names `file` and the key.

    Raises ConfigError for a wrong value, Unsupported for what cannot be converted.
    """
    family, (text, within) = find_family(config, file), text_part(config, file)
    return family.read_config(Keys(text, file, family.defaults, family.aliases, within), dtype)
