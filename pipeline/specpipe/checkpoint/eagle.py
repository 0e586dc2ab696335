"""EAGLE-1 and EAGLE-2 drafters as their authors publish them, as TensorRT-LLM's `EagleForCausalLM`.

A drafter is a folder with config.json and the tensors of one Llama layer without its first norm,
of an embedding, and of `fc`, which makes its input out of a token's embedding and the hidden state
before it, in this order (SafeAILab/EAGLE, eagle/model/cnets.py). It has no output layer: the
target's is used. The two methods differ in the shape of the tree, not in the drafter.

Upstream's engine runs one copy of it for every level of the tree, each with weights of its own:
`eagle_nets.N.drafter.*` and `eagle_nets.N.lm_head.weight` (tensorrt_llm/models/eagle/model.py and
examples/eagle/convert_checkpoint.py). Its `fc` always has a bias; for a drafter without it is zero.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.drafter import output_copies
from specpipe.checkpoint.drafter_method import refuse_other_drafters
from specpipe.checkpoint.families import HfConfig, Shard, TensorPlan, llama
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import copy, ignored, linear, llama_layer
from specpipe.checkpoint.plain_files import read_json
from specpipe.checkpoint.safetensors_file import SafetensorsFile
from specpipe.checkpoint.source import Opening, TensorReader, read_tensors
from specpipe.checkpoint.weight_files import weight_files
from specpipe.config.upstream_methods import Eagle
from specpipe.core.contracts import Role
from specpipe.core.errors import ConfigError, Rejection, Unsupported
from specpipe.core.model import Dtype, ModelConfig

if TYPE_CHECKING:
    import torch

# Facts that are the target's own in upstream's engine: its tokens, hidden states, positions and
# KV cache, which holds the drafter's layer after the target's -> what they are called.
_SHARED = {
    "hidden_size": "hidden size",
    "vocab_size": "vocabulary size",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
    "head_size": "head size",
    "rotary_base": "rope_theta",
    "rotary_scaling": "rope_scaling",
}
_EXPECTED = "an EAGLE drafter: config.json with model.safetensors or pytorch_model.bin"
_FROM_TARGET = ("logits_dtype", "mapping", "use_parallel_embedding", "embedding_sharding_dim")


@dataclass(frozen=True)
class EagleSource:
    """A drafter that was found, not read, and the trees it is written for; see `DrafterSource`."""

    path: Path
    weights: tuple[Path, ...]
    net: ModelConfig
    has_bias: bool  # of `fc`
    max_draft_len: int
    num_eagle_layers: int
    max_non_leaves_per_layer: int

    accuracy = None

    @property
    def summary(self) -> str:
        """Return the size in words: one layer, as every drafter of this kind has."""
        return f"a drafter of 1 layer of hidden size {self.net.hidden_size}"

    def files(self) -> list[Path]:
        """Return the files with the tensors, and their config.json."""
        return [*self.weights, self.path / "config.json"] if self.weights else []

    def options(self) -> dict[str, str]:
        """Return the shape of the trees."""
        keys = ("max_draft_len", "num_eagle_layers", "max_non_leaves_per_layer")
        return {key: str(getattr(self, key)) for key in keys}

    def joined(self, model: ModelConfig) -> ModelConfig:
        """Return the facts of a target and its drafter in one checkpoint."""
        return replace(
            model,
            num_eagle_layers=self.num_eagle_layers,
            max_non_leaves_per_layer=self.max_non_leaves_per_layer,
            eagle_net_config=replace(self.net, dtype=model.dtype),
        )

    def check(self, role: Role, model: ModelConfig) -> list[Rejection]:
        """Refuse a drafter of another target: the engine takes all that they share from that."""
        other = [
            f"{what} {ours} against {theirs}"
            for fact, what in _SHARED.items()
            if (ours := getattr(self.net, fact)) != (theirs := getattr(model, fact))
        ]
        if not other:
            return []
        return [
            Rejection(
                f"the drafter is not like this {role}, and TensorRT-LLM's EAGLE engines have one "
                f"of these for both: {', '.join(other)}",
                f"use a drafter that was trained for this {role}; if this one was, correct its "
                "config.json",
            )
        ]

    def tensors(self, model: ModelConfig) -> list[TensorPlan]:
        """List the drafter's tensors, once for every level of the tree."""
        return planned_drafters(model, has_bias=self.has_bias)

    def shared(self, plans: list[TensorPlan]) -> list[TensorPlan]:
        """List the copies of the target's output layer, one for every level of the tree."""
        return planned_outputs(plans, self.num_eagle_layers)

    def config(self, hf: HfConfig, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that make a target's config one of upstream's `EagleConfig`.

        The drafter's part is a complete config of a Llama, which is never quantised.
        """
        net = {
            **written["eagle_net_config"],
            **llama.extra_config(self.net),
            **{key: written[key] for key in _FROM_TARGET},
            "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        }
        return {
            "architecture": "EagleForCausalLM",
            "max_draft_len": self.max_draft_len,
            "eagle_net_config": net,
        }

    def read(self, opening: Opening = SafetensorsFile) -> AbstractContextManager[TensorReader]:
        """Open the drafter's files, whose own names are the sources of `tensors`."""
        return read_tensors(self.weights, opening)


def open_eagle(path: Path, options: Eagle, dtype: Dtype) -> EagleSource:
    """Find a drafter in a folder; reads config.json and the names of the tensors.

    Raises Unsupported for a drafter of another method or of several layers, ConfigError for a
    folder without one and for tensors that are missing or that no drafter has.
    """
    weights = weight_files(path, expected=_EXPECTED)
    with read_tensors(weights) as reader:
        names = reader.names()
    refuse_other_drafters(path, names, "eagle", "an EAGLE-1 or EAGLE-2 drafter")
    if "fc.weight" not in names:
        raise ConfigError(
            f"{path}: no EAGLE drafter among the tensors",
            hint="expected fc.weight, embed_tokens.weight and layers.0.*, as the authors publish "
            "them; Medusa heads go with method: medusa",
        )
    net = _net(path, read_json(path / "config.json"), dtype)
    _account(path, names, net)
    return _sized(path, weights, net, "fc.bias" in names, options)


def known_eagle(name: str, options: Eagle, dtype: Dtype) -> EagleSource | None:
    """Return the facts of a well-known drafter, for planning without a download; None of others."""
    known = read_json(Path(__file__).with_name("known_drafters.json")).get(name)
    if known is None:
        return None
    return _sized(Path(name), (), _net(Path(name), known, dtype), True, options)


def planned_drafters(model: ModelConfig, *, has_bias: bool = True) -> list[TensorPlan]:
    """List the tensors of the copies that `model` counts, output layers apart."""
    if model.eagle_net_config is None:
        return []
    plans = list(_drafter(model.eagle_net_config, has_bias=has_bias))
    return [
        replace(plan, name=f"eagle_nets.{level}.drafter.{plan.name}")
        for level in range(model.num_eagle_layers)
        for plan in plans
    ]


def planned_outputs(plans: list[TensorPlan], levels: int) -> list[TensorPlan]:
    """List the copies of the target's output layer; `plans`: the target's."""
    return output_copies(plans, (f"eagle_nets.{n}.lm_head.weight" for n in range(levels)))


def _sized(
    path: Path, weights: tuple[Path, ...], net: ModelConfig, has_bias: bool, options: Eagle
) -> EagleSource:
    return EagleSource(
        path,
        weights,
        net,
        has_bias,
        options.num_draft_tokens,
        options.num_eagle_layers,
        options.max_non_leaves_per_layer,
    )


def _net(path: Path, hf: HfConfig, dtype: Dtype) -> ModelConfig:
    net = llama.read_config(Keys(hf, path / "config.json", llama.DEFAULTS), dtype)
    if net.num_hidden_layers != 1:
        raise Unsupported(
            f"{path}: the drafter has {net.num_hidden_layers} layers",
            hint="use an EAGLE drafter of one layer, as its authors train them",
        )
    return net


def _account(path: Path, names: Set[str], net: ModelConfig) -> None:
    wanted = {s for plan in _drafter(net, has_bias=False) for s in plan.sources}
    missing = sorted(wanted - names)
    unexpected = sorted(n for n in names - wanted - {"fc.bias"} if not ignored(n, net))
    if missing:
        raise ConfigError(
            f"{path}: the drafter lacks {', '.join(missing[:4])}",
            hint="the file is cut short, or config.json belongs to another drafter",
        )
    if unexpected:
        raise ConfigError(
            f"{path}: {', '.join(unexpected[:4])}: TensorRT-LLM's EAGLE drafter has no such part",
            hint="use a drafter in its authors' layout: one layer without its first norm, no last "
            "norm, no output layer",
        )


def _drafter(net: ModelConfig, *, has_bias: bool) -> Iterator[TensorPlan]:
    """Yield the tensors of one copy, under upstream's names within it."""
    hidden, shape = net.hidden_size, (net.vocab_size, net.hidden_size)
    yield copy("vocab_embedding.weight", "embed_tokens.weight", *shape, shard=Shard.EMBEDDING)
    yield from linear("fc", [("fc", hidden)], 2 * hidden, Shard.ROWS, bias=has_bias)
    if not has_bias:
        zeros = partial(_zeros, hidden)
        yield TensorPlan("fc.bias", (hidden,), (), (), Shard.ROWS, join=zeros)
    for plan in llama_layer(net, "layers.0.", "layers.0."):
        if "input_layernorm" not in plan.name:
            yield plan


def _zeros(size: int, parts: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Join: nothing, into zeros."""
    import torch

    return torch.zeros(size)
