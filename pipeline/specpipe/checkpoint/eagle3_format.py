"""config.json of an EAGLE-3 drafter, read in two layouts and written in one.

- `speculators`: the decoder layer is described in `transformer_layer_config`, its tensors are
  `layers.0.*` (vllm-project/speculators, models/eagle3/config.py);
- its authors' layout: a flat Llama config with `draft_vocab_size`, tensors `midlayer.*`
  (SafeAILab/EAGLE). The hidden states to read may be listed in `eagle_config`.

A layer is named by the index of its input: hidden state i is the residual stream after i layers,
before any norm, which is transformers' `hidden_states[i]`.

Not here: tensors, see `eagle3.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.checkpoint.families import llama
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.plain_files import read_json
from specpipe.core.artifacts import write_text
from specpipe.core.errors import Unsupported
from specpipe.core.model import Dtype, ModelConfig

LAYER = "transformer_layer_config"
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
VERSION = "0.9.0"  # of speculators, whose keys are written
# Flags of speculators that change the arithmetic and have tensors or norms of their own.
_UNKNOWN = ("norm_before_fc", "fc_norm")
_LAYER_KEYS = (
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
    "vocab_size", "bos_token_id", "eos_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Eagle3Config:
    """The facts of a drafter's config.json."""

    net: ModelConfig  # its layer; the vocabulary is the target's
    speculators: bool  # the layout; False: its authors'
    draft_vocab_size: int | None
    layer_ids: tuple[int, ...] | None  # ascending; None: the usual three
    norm_before_residual: bool | None  # None: not given, and libraries differ in the default
    norm_output: bool
    unknown: tuple[str, ...]  # options that the CPU engine does not compute


def read_eagle3_config(folder: Path, dtype: Dtype) -> Eagle3Config:
    """Read config.json in either layout.

    Raises ConfigError for a missing or wrong value, Unsupported for a drafter of several layers or
    of another kind of layer.
    """
    keys = Keys(read_json(folder / "config.json"), folder / "config.json")
    speculators = keys.has(LAYER)
    layer = keys.table(LAYER) if speculators else keys
    net = _layer(layer, dtype)
    ids = (keys if speculators else keys.table("eagle_config")).places(LAYER_IDS)
    given = keys.flag("norm_before_residual") if keys.has("norm_before_residual") else None
    return Eagle3Config(
        net,
        speculators,
        keys.maybe_whole("draft_vocab_size"),
        tuple(sorted(set(ids))) or None,
        given if speculators else bool(given),
        keys.flag("norm_output"),
        tuple(name for name in _UNKNOWN if keys.flag(name)),
    )


def _layer(keys: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts of the decoder layer."""
    kind = keys.values.get("model_type", "llama")
    if kind != "llama":
        raise keys.unsupported(
            f"describes a drafter with a layer of {kind!r}",
            hint="use an EAGLE-3 drafter with a Llama layer",
        )
    inside = Keys(keys.values, keys.file, llama.DEFAULTS, within=keys.within)
    net = llama.read_config(inside, dtype)
    if keys.has("num_hidden_layers") and net.num_hidden_layers != 1:
        raise Unsupported(
            f"{keys.file}: the drafter has {net.num_hidden_layers} layers",
            hint="use an EAGLE-3 drafter of one layer",
        )
    return net if net.num_hidden_layers == 1 else _of_one_layer(inside, dtype)


def _of_one_layer(keys: Keys, dtype: Dtype) -> ModelConfig:
    return llama.read_config(keys.with_values(num_hidden_layers=1), dtype)


def usual_layers(count: int) -> tuple[int, ...]:
    """Return the hidden states that a drafter reads by default, of a target with `count` layers.

    2, half and the third from the end, as in SafeAILab/EAGLE, vLLM and TensorRT-LLM; ascending,
    each once, and none that a shallow target lacks.
    """
    return tuple(sorted({min(max(i, 0), count - 1) for i in (2, count // 2, count - 3)}))


@dataclass(frozen=True)
class NewEagle3:
    """What decides the config.json of a new drafter, apart from its target's."""

    draft_vocab_size: int
    layer_ids: tuple[int, ...]
    tokens: int  # that a user drafts a step, unless told otherwise
    dtype: str
    norm_before_residual: bool = False


def layer_config(target: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the Llama config of the drafter's layer: of the target's sizes.

    `target` is the target's config.json. The target may be of another family with RMSNorm.
    """
    kept = {key: target[key] for key in _LAYER_KEYS if target.get(key) is not None}
    own = {"model_type": "llama", "num_hidden_layers": 1, "tie_word_embeddings": False}
    return {**kept, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, **own,
            "dtype": dtype}  # fmt: skip


def speculators_config(new: NewEagle3, target: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return config.json in the layout of speculators; `name` names the target for a reader."""
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": new.tokens,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    verifier = {"name_or_path": name, "architectures": list(target.get("architectures") or [])}
    return {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "draft_vocab_size": new.draft_vocab_size,
        "target_hidden_size": None,
        "norm_before_residual": new.norm_before_residual,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        LAYER_IDS: list(new.layer_ids),
        "tie_word_embeddings": False,
        "dtype": new.dtype,
        LAYER: layer_config(target, new.dtype),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": verifier,
        },
    }


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write config.json; equal values give equal bytes."""
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
