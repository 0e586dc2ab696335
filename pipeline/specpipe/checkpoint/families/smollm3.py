"""SmolLM3: Llama without positions in some layers."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.hf import layer_windows
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.llama import read_config as read_llama
from specpipe.checkpoint.families.llama import tensors
from specpipe.checkpoint.families.parts import ignored, no_keys
from specpipe.core.model import Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008,
    "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
    "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "rope_theta": 2000000.0, "tie_word_embeddings": True, "no_rope_layer_interval": 4,
}  # fmt: skip


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; without `layer_types`, the layers without positions may slide."""
    model = read_llama(hf, dtype)
    unrotated, slides = _unrotated(hf, model.num_hidden_layers), hf.flag("use_sliding_window")
    windows = layer_windows(hf, model, lambda layer: slides and layer in unrotated)
    how = replace(model.arithmetic, unrotated_layers=unrotated, sliding_windows=windows)
    return replace(model, architecture="SmolLM3ForCausalLM", upstream_since=None, arithmetic=how)


def _unrotated(hf: Keys, layers: int) -> tuple[int, ...]:
    """Return the layers without positions: those with a 0 in `no_rope_layers`, or every n-th."""
    if not hf.has("no_rope_layers"):
        interval = hf.whole("no_rope_layer_interval")
        return tuple(range(interval - 1, layers, interval))
    flags = hf.values["no_rope_layers"]
    known = isinstance(flags, list) and all(isinstance(n, int) and n in (0, 1) for n in flags)
    if not known or len(flags) < layers:
        raise hf.wrong("no_rope_layers", f"a list of 0 and 1 for each of {layers} layers")
    return tuple(layer for layer, rotated in enumerate(flags[:layers]) if not rotated)


FAMILY = Family(read_config, tensors, no_keys, ignored, DEFAULTS)
