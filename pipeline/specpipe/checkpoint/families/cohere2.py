"""Command R7B and Command A: Command R whose layers slide, with positions, or see all, without."""

from dataclasses import replace
from typing import Any

from specpipe.checkpoint.families import Family
from specpipe.checkpoint.families.cohere import DEFAULTS as COHERE
from specpipe.checkpoint.families.cohere import cohere_facts, tensors
from specpipe.checkpoint.families.hf import layer_windows, sliding_layers
from specpipe.checkpoint.families.keys import Keys
from specpipe.checkpoint.families.parts import ignored, no_keys
from specpipe.core.model import Dtype, ModelConfig

DEFAULTS: dict[str, Any] = {**COHERE, "sliding_window": 4096, "sliding_window_pattern": 4}


def read_config(hf: Keys, dtype: Dtype) -> ModelConfig:
    """Return the facts; without `layer_types`, every layer but each fourth slides."""
    model = cohere_facts(hf, dtype, "Cohere2ForCausalLM")
    pattern = hf.whole("sliding_window_pattern")
    slides = sliding_layers(hf, model.num_hidden_layers, lambda i: (i + 1) % pattern > 0)
    if any(slides):
        hf.whole("sliding_window")  # null: transformers fails
    how = replace(
        model.arithmetic,
        unrotated_layers=tuple(i for i, slide in enumerate(slides) if not slide),
        sliding_windows=layer_windows(hf, model, lambda i: slides[i]),
    )
    return replace(model, upstream_since=None, arithmetic=how)


FAMILY = Family(read_config, tensors, no_keys, ignored, DEFAULTS)
