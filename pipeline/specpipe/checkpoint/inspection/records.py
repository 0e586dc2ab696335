"""The result of an inspection: facts, files, findings, and what could not be checked."""

from dataclasses import dataclass
from typing import Literal

FolderKind = Literal[
    "TensorRT-LLM checkpoint", "TensorRT-LLM engine", "OpenVINO engine", "EAGLE-3 drafter"
]


@dataclass(frozen=True)
class InspectionFinding:
    """Something wrong: the folder cannot be used, or will answer wrongly."""

    sentence: str
    hint: str

    def __str__(self) -> str:
        return f"{self.sentence}; {self.hint}"


@dataclass(frozen=True)
class InspectedModel:
    """The facts of the model, as its config.json gives them; None: it does not, or not legibly."""

    architecture: str | None
    base: str | None  # what Medusa heads or a drafter were put on
    dtype: str | None
    num_hidden_layers: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_size: int | None
    hidden_size: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    rotary_base: float | None
    rotary_scaling: str | None  # its kind
    quantization: str | None  # upstream's names
    kv_cache_quantization: str | None


@dataclass(frozen=True)
class Speculation:
    """How the model drafts or verifies."""

    mode: str | None  # upstream's name; None: a checkpoint leaves it to the build
    max_draft_len: int | None
    num_medusa_heads: int | None
    num_medusa_layers: int | None
    redrafter_num_beams: int | None
    redrafter_draft_len_per_beam: int | None
    num_eagle_layers: int | None  # levels of tree
    eagle3_draft_vocab_size: int | None = None  # tokens that an EAGLE-3 drafter can draft
    eagle3_layer_ids: tuple[int, ...] = ()  # it reads the input of these layers of its target


@dataclass(frozen=True)
class Ranks:
    """Over how many GPUs it is spread."""

    tp_size: int
    pp_size: int
    moe_ep_size: int

    @property
    def count(self) -> int:
        """Number of files."""
        return self.tp_size * self.pp_size


@dataclass(frozen=True)
class EngineLimits:
    """What an engine was built for."""

    max_batch_size: int | None
    max_input_len: int | None
    max_seq_len: int | None
    max_num_tokens: int | None
    max_beam_width: int | None
    kv_cache_type: str | None
    paged_context_fmha: bool | None


@dataclass(frozen=True)
class File:
    """One file with weights."""

    name: str
    size: int  # bytes
    tensors: int | None = None  # None: not a checkpoint's, or damaged
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """Everything that was found in a folder."""

    path: str
    kind: FolderKind
    version: str | None  # of TensorRT-LLM; checkpoints often do not say
    model: InspectedModel
    speculation: Speculation
    ranks: Ranks | None  # None: config.json does not say legibly
    limits: EngineLimits | None  # None: not an engine
    files: tuple[File, ...]
    defects: tuple[InspectionFinding, ...]
    remarks: tuple[str, ...] = ()  # worth knowing, nothing wrong
    unchecked: tuple[str, ...] = ()
