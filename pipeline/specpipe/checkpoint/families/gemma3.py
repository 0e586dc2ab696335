"""Gemma 3, its text model: Gemma 2 with normed queries and keys, and two bases of rotary positions.

Layers that slide have their own base, `rope_local_base_freq`, and never a scaling.
"""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family, TensorPlan
from specpipe.checkpoint.families.gemma import ACT, add_one, gemma_facts
from specpipe.checkpoint.families.gemma2 import DEFAULTS as GEMMA2
from specpipe.checkpoint.families.gemma2 import layer
from specpipe.checkpoint.families.hf import layer_windows, require_act, sliding_layers
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import decoder, ignored
from specpipe.checkpoint.families.rope import read_rope
from specpipe.core.model import Dtype, ModelConfig

SINCE = (0, 19)  # by the release notes
GLOBAL, LOCAL = "full_attention", "sliding_attention"
DEFAULTS: dict[str, Any] = {
    **GEMMA2, "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6, "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; without `layer_types`, every layer but each sixth slides.

    Raises Unsupported for embedding models, which attend in both directions. As in transformers,
    scores have no soft cap.
    """
    require_act(hf, ACT, key="hidden_activation")
    if hf.flag("use_bidirectional_attention"):
        raise hf.unsupported("has use_bidirectional_attention: true; it does not write text")
    model = gemma_facts(_with_rope(hf, GLOBAL), dtype, "Gemma3ForCausalLM")
    pattern = hf.whole("sliding_window_pattern")
    slides = sliding_layers(hf, model.num_hidden_layers, lambda i: (i + 1) % pattern > 0)
    local = tuple(i for i, slide in enumerate(slides) if slide)
    return replace(
        model,
        qk_layernorm=True,
        query_pre_attn_scalar=hf.number("query_pre_attn_scalar", above=0),
        final_logit_softcapping=hf.maybe_number("final_logit_softcapping", above=0),
        upstream_since=max(model.upstream_since or SINCE, SINCE),
        upstream_limits=_limits(model, local),
        arithmetic=replace(
            model.arithmetic,
            post_norms=True,
            mlp_norm="pre_feedforward_layernorm",
            sliding_windows=layer_windows(hf, model, lambda i: i in local),
            local_layers=local,
            local_rotary_base=_local_base(hf, model),
        ),
    )


def _with_rope(hf: Keys, kind: str) -> Keys:
    """Return the keys with the rotary positions of one kind of layers in `rope_parameters`."""
    rule = hf.table("rope_parameters")
    if flat := sorted(rule.values.keys() - {GLOBAL, LOCAL}):
        raise hf.unsupported(
            f"has rope_parameters.{flat[0]}; Gemma 3 has rope_parameters of {GLOBAL} and {LOCAL}"
        )
    return hf.with_values(rope_parameters=rule.table(kind).values)


def _local_base(hf: Keys, model: ModelConfig) -> float:
    """Return the base of the layers that slide; raises Unsupported if they are scaled."""
    local = _with_rope(hf, LOCAL)
    values = {k: v for k, v in local.values.items() if k not in ("rope_theta", "rope_scaling")}
    defaults = {**hf.defaults, "rope_theta": hf.defaults["rope_local_base_freq"]}
    spelt = {"rope_theta": "rope_local_base_freq"}
    keys = replace(local, values=values, defaults=defaults, aliases=spelt)
    return read_rope(keys, ("default",), longest=model.max_position_embeddings).base


def _limits(model: ModelConfig, local: tuple[int, ...]) -> tuple[str, ...]:
    """Return what upstream's class would compute otherwise."""
    regular = _layers_of(_pattern(model.num_hidden_layers, local), model.num_hidden_layers)
    return (
        *model.upstream_limits,
        *(["scales the rotary positions of all layers, this model those of some"]
          if model.rotary_scaling else []),
        *(["knows one global layer after every few local ones, this model has others"]
          if local != regular else []),
    )  # fmt: skip


def _pattern(layers: int, local: tuple[int, ...]) -> int:
    """Return the number n of a model whose every n-th layer is global."""
    return next((i for i in range(layers) if i not in local), layers) + 1


def _layers_of(pattern: int, layers: int) -> tuple[int, ...]:
    return tuple(i for i in range(layers) if (i + 1) % pattern)


def tensors(model: ModelConfig) -> list[TensorPlan]:
    """List every tensor of a checkpoint, whole, in the order in which it is written."""
    return add_one(decoder(model, layer))


def extra_config(model: ModelConfig) -> dict[str, Any]:
    """Return the keys of upstream's `GemmaConfig` for Gemma 3."""
    how = model.arithmetic
    return {
        "inter_layernorms": True,
        "_sliding_window_pattern": _pattern(model.num_hidden_layers, how.local_layers),
        "rope_local_base_freq": how.local_rotary_base,
        "sliding_window": model.sliding_window or model.max_position_embeddings,
    }


# In the models that also see, as the hub has them and as transformers 5 names them.
OUTER = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
_SIGHT = ("vision_tower.", "multi_modal_projector.")


def may_be_left_out(name: str, model: ModelConfig) -> bool:
    """Tell whether a source tensor may be left out: also those that see."""
    return name.removeprefix("model.").startswith(_SIGHT) or ignored(name, model)


FAMILY = Family(
    read_config,
    tensors,
    extra_config,
    may_be_left_out,
    DEFAULTS,
    outer_names=OUTER,
    cuts_embedding=True,
)
