"""Medusa heads on disk, in the three layouts that exist, as tensors of TensorRT-LLM's names.

- FasterDecoding: `medusa_lm_head.safetensors` or `.pt`, `{head}.{layer}.linear.weight`, and
  `{head}.{layers}.weight` for the output layer;
- Medusa-2: the same after `medusa_head.`, among the model's own tensors;
- ModelOpt: `medusa_heads.{head}.medusa_layers.{layer}.linear.weight`, `.lm_head.weight`.

Heads and layers are counted from the tensors: published configs are known to be wrong. The output
layers may be missing: then the heads share the target's. A `token_map` is of our training, and for
our own engine.

They are written next to their target in one of two layouts. Compact, for specpipe's CPU engine: as
they were found. In full, for TensorRT-LLM's `MedusaForCausalLM`, where every head has an output
layer. A shared one is then written once for each head, and the config fixes the number of draft
tokens.
"""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from specpipe.checkpoint.drafter import (
    RenamedTensors,
    output_copies,
    planned_token_map,
    read_calibration,
)
from specpipe.checkpoint.drafter_method import refuse_other_drafters
from specpipe.checkpoint.families import HfConfig, Shard, TensorPlan
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.source import read_tensors
from specpipe.checkpoint.weight_files import weight_files
from specpipe.core.contracts import Role
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.errors import ConfigError, Rejection, first_few
from specpipe.core.model import ModelConfig

WEIGHTS = "medusa_lm_head.safetensors"
FILES = (WEIGHTS, "medusa_lm_head.pt")
_EXPECTED = (
    f"{WEIGHTS} (`specpipe train medusa` writes it into engines/NAME/train/medusa), {FILES[1]} or "
    "model.safetensors"
)
# model_type in the config of a checkpoint with heads -> the architecture of the target
BASES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
_PREFIXES = ("medusa_head.", "medusa_heads.")
_LAYOUTS = "known layouts: FasterDecoding's, Medusa-2's `medusa_head.`, ModelOpt's"
_NAME = re.compile(
    r"(?:medusa_heads?\.)?(?P<head>\d+)\.(?:medusa_layers\.)?"
    r"(?:(?P<layer>\d+)\.linear\.(?P<part>weight|bias)|(?:lm_head|(?P<output>\d+))\.weight)"
)
_TOKEN_MAP = re.compile(rf"(?:medusa_heads?\.)?{TOKEN_MAP}")
_RANKED = f"medusa_heads.{TOKEN_MAP}"


@dataclass(frozen=True)
class HeadsSource(RenamedTensors):
    """Heads that were found, but not read, and how they are to be written; see `DrafterSource`."""

    num_heads: int
    num_layers: int
    hidden_size: int
    shares_output: bool
    accuracy: tuple[tuple[float, ...], ...] | None  # [heads, ranks], see `trees.grow_tree`
    max_draft_len: int | None = None  # in full, for trees of this many nodes; None: compact
    vocab_size: int | None = None  # of the output layers; None: there are none, or it is not known
    num_ranked: int = 0  # tokens of the token map

    def in_full(self, max_draft_len: int) -> "HeadsSource":
        """Return the heads for upstream's layout, for trees of exactly `max_draft_len` nodes."""
        return replace(self, max_draft_len=max_draft_len)

    @property
    def summary(self) -> str:
        """Return the number of heads and of their layers in words."""
        return f"{self.num_heads} heads of {self.num_layers} layer{'s'[: self.num_layers > 1]}"

    def options(self) -> dict[str, str]:
        """Return the length of the drafts, where the layout fixes it."""
        return {"max_draft_len": str(self.max_draft_len)} if self.max_draft_len else {}

    def joined(self, model: ModelConfig) -> ModelConfig:
        """Return the facts of a target and its heads in one checkpoint."""
        return replace(model, num_medusa_heads=self.num_heads, num_medusa_layers=self.num_layers)

    def check(self, role: Role, model: ModelConfig) -> list[Rejection]:
        """Refuse heads that were trained for hidden states or tokens of another number."""
        hint = f"use heads that were trained for this {role}"
        found = []
        if self.hidden_size != model.hidden_size:
            reason = f"the heads read hidden states of {self.hidden_size} values, the {role} has "
            found.append(Rejection(f"{reason}{model.hidden_size}", hint))
        if self.vocab_size not in (None, model.vocab_size):
            reason = f"the heads have a vocabulary of {self.vocab_size} tokens, the {role} has "
            found.append(Rejection(f"{reason}{model.vocab_size}", hint))
        return found

    def tensors(self, model: ModelConfig) -> list[TensorPlan]:
        """List the heads' tensors, in the order in which they are written."""
        plans = planned_heads(model, shares_output=self.shares_output)
        if self.num_ranked and self.max_draft_len is None:
            plans.append(planned_token_map("medusa_heads", self.num_ranked))
        return plans

    def shared(self, plans: list[TensorPlan]) -> list[TensorPlan]:
        """List the copies of the target's output layer that heads in full need."""
        if self.max_draft_len is None or not self.shares_output:
            return []
        names = (f"medusa_heads.{head}.lm_head.weight" for head in range(self.num_heads))
        return output_copies(plans, names)

    def config(self, hf: HfConfig, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that make a target's config one of upstream's `MedusaConfig`.

        Nothing if the heads are compact. The `model_type` of the target's HF config tells upstream
        which class the base is (tensorrt_llm/models/medusa/config.py); raises ConfigError without.
        """
        if self.max_draft_len is None:
            return {}
        if not hf.get("model_type"):
            raise ConfigError(
                "config.json of the target has no model_type, which Medusa heads need",
                hint="give it the model_type of its architecture, e.g. llama",
            )
        return {
            "architecture": "MedusaForCausalLM",
            "model_type": hf["model_type"],
            "max_draft_len": self.max_draft_len,
        }


def open_heads(path: Path) -> HeadsSource:
    """Find the heads in a folder or file; reads names only.

    Raises ConfigError if there are none, if heads differ in their layers or shapes, and for tensors
    that no heads have, Unsupported if they are a drafter of another method.
    """
    weights = _find(path)
    with read_tensors(weights) as reader:
        refuse_other_drafters(path, reader.names(), "medusa", "Medusa heads")
        names = _named(path, reader.names())
        shapes = {ours: reader.shape(theirs) for ours, theirs in names.items()}
    ranked = shapes.pop(_RANKED, (0,))
    heads, layers, shares = _count(path, set(shapes))
    hidden, vocab = _sizes(path, shapes)
    accuracy = read_calibration(path if path.is_dir() else path.parent, heads)
    return HeadsSource(
        path, weights, names, heads, layers, hidden, shares, accuracy, vocab_size=vocab,
        num_ranked=prod(ranked),
    )  # fmt: skip


def known_heads(name: str) -> HeadsSource | None:
    """Return the facts of well-known heads, for planning without a download; None of others."""
    known = read_json(Path(__file__).with_name("known_heads.json")).get(name)
    if known is None:
        return None
    return HeadsSource(
        Path(name),
        weights=(),
        names={},
        num_heads=known["num_heads"],
        num_layers=known["num_layers"],
        hidden_size=known["hidden_size"],
        shares_output=False,
        accuracy=None,
    )


def canonical(name: str) -> str | None:
    """Return TensorRT-LLM's name of a head's tensor; None for any other tensor."""
    if _TOKEN_MAP.fullmatch(name):
        return _RANKED
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    at = f"medusa_heads.{match['head']}."
    if match["layer"] is None:
        return f"{at}lm_head.weight"
    return f"{at}medusa_layers.{match['layer']}.linear.{match['part']}"


def is_inner_head(name: str) -> bool:
    """Tell whether a tensor among a model's own belongs to Medusa heads (Medusa-2, ModelOpt)."""
    return name.startswith(_PREFIXES) and canonical(name) is not None


def _find(path: Path) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    for name in FILES:
        if (path / name).is_file():
            return (path / name,)
    return weight_files(path, expected=_EXPECTED)


def _named(path: Path, there: Set[str]) -> dict[str, str]:
    """Return TensorRT-LLM's names of the heads' tensors.

    Raises ConfigError unless there are some, and for tensors that belong neither to heads nor, if
    the heads have a prefix, to a model around them.
    """
    inner = any(map(is_inner_head, there))
    names: dict[str, str] = {}
    strange = []
    for theirs in sorted(there):
        ours = canonical(theirs)
        ours_too = theirs.startswith(_PREFIXES) if inner else True
        if ours is not None and ours_too and ours not in names:
            names[ours] = theirs
        elif ours is not None or ours_too:
            strange.append(theirs)
    if not names:
        raise ConfigError(f"{path}: no Medusa heads among the tensors", hint=_LAYOUTS)
    if strange:
        problem = f"{path}: tensors that no Medusa heads have, or twice: {first_few(strange)}"
        raise ConfigError(problem, hint=_LAYOUTS)
    return names


def _sizes(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int | None]:
    """Return hidden and vocabulary size; raises ConfigError if heads differ in their shapes."""
    hidden = shapes["medusa_heads.0.medusa_layers.0.linear.bias"][0]
    output = shapes.get("medusa_heads.0.lm_head.weight")
    for name, shape in sorted(shapes.items()):
        expected = (hidden,) if name.endswith("bias") else (hidden, hidden)
        if name.endswith("lm_head.weight") and output is not None:
            expected = (output[0], hidden)
        if shape != expected:
            raise ConfigError(
                f"{path}: {name} has shape {shape}, expected {expected}",
                hint="all heads of one file have the same shapes; fetch it again",
            )
    return hidden, output[0] if output is not None else None


def _count(path: Path, names: set[str]) -> tuple[int, int, bool]:
    """Return heads, layers a head, and whether output layers are missing."""
    heads = 1 + max(int(name.split(".")[1]) for name in names)
    layers = 1 + max((int(n.split(".")[3]) for n in names if "medusa_layers" in n), default=-1)
    shares = not any(name.endswith("lm_head.weight") for name in names)
    missing = sorted(set(_tensor_names(heads, layers, shares)) - names)
    if missing or not layers:
        raise ConfigError(
            f"{path}: {heads} Medusa heads of {layers} layers lack "
            f"{', '.join(missing[:4]) or 'residual layers'}",
            hint="every head needs the same layers, each with weight and bias",
        )
    return heads, layers, shares


def _tensor_names(heads: int, layers: int, shares: bool) -> Iterator[str]:
    for head in range(heads):
        for layer in range(layers):
            for part in ("weight", "bias"):
                yield f"medusa_heads.{head}.medusa_layers.{layer}.linear.{part}"
        if not shares:
            yield f"medusa_heads.{head}.lm_head.weight"


def planned_heads(model: ModelConfig, *, shares_output: bool) -> list[TensorPlan]:
    """List the tensors of the heads that `model` counts.

    Every pipeline stage holds them, though only the last uses them: upstream's model declares them
    on every rank (tensorrt_llm/models/medusa/model.py) and refuses a file without them.
    """
    hidden = model.hidden_size
    shapes = {"bias": (hidden,), "weight": (hidden, hidden)}
    plans = []
    for name in _tensor_names(model.num_medusa_heads, model.num_medusa_layers, shares_output):
        output = name.endswith("lm_head.weight")
        shape = (model.vocab_size, hidden) if output else shapes[name.rsplit(".", 1)[1]]
        shard = Shard.HEAD if output else Shard.ROWS
        plans.append(TensorPlan(name, shape, (name,), (shape,), shard, stage="every"))
    return plans
