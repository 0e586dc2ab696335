"""Medusa heads as vLLM reads them: a folder with config.json and model.safetensors.

Names and keys follow `vllm/model_executor/models/medusa.py` and
`vllm/transformers_utils/configs/medusa.py` of vLLM 0.32: `blocks.{head}.layers.{layer}`, each with
a bias, and `lm_heads.{head}` or, with `original_lm_head`, one `lm_head` for all. vLLM does not take
the target's output layer for heads without one, so it is copied into the file. A token map is left
out: vLLM cuts no output layer with it.
"""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from specpipe.checkpoint.families import find_family, read_facts
from specpipe.checkpoint.medusa import HeadsSource
from specpipe.checkpoint.source import Source, TensorReader, read_tensors, text_tensors, with_prefix
from specpipe.checkpoint.tied import head_name
from specpipe.checkpoint.writer import Announced, SafetensorsWriter
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.errors import ConfigError
from specpipe.core.model import ModelConfig

FORMAT = "1"  # raise it when the same heads must give other bytes
_EMBEDDING = "transformer.vocab_embedding.weight"


def write_vllm_heads(heads: HeadsSource, source: Source, model: ModelConfig, out: Path) -> None:
    """Write heads for a target into the empty folder `out`; every tensor keeps its type.

    `source` is the target, whose output layer is copied if the heads have none. Raises ConfigError
    if it has none either.
    """
    with ExitStack() as stack:
        own = stack.enter_context(heads.read())
        named: dict[str, tuple[TensorReader, str]] = {
            vllm_name(name): (own, name)
            for name in sorted(own.names())
            if not name.endswith(TOKEN_MAP)
        }
        if heads.shares_output:
            target = stack.enter_context(read_tensors(source.weights))
            named["lm_head.weight"] = _output_layer(target, source)
        announced = {
            name: Announced(reader.shape(theirs), reader.dtype(theirs))
            for name, (reader, theirs) in named.items()
        }
        with SafetensorsWriter(out / "model.safetensors", announced) as writer:
            for name, (reader, theirs) in named.items():
                writer.write(name, reader.read(theirs))
    text = json.dumps(heads_config(heads, model), indent=2, sort_keys=True) + "\n"
    (out / "config.json").write_text(text, encoding="utf-8")


def vllm_name(name: str) -> str:
    """Return vLLM's name of a head's tensor, which has TensorRT-LLM's name."""
    _, head, *rest = name.split(".")
    if rest[0] == "lm_head":
        return f"lm_heads.{head}.weight"
    return f"blocks.{head}.layers.{rest[1]}.{rest[-1]}"


def heads_config(heads: HeadsSource, model: ModelConfig) -> dict[str, Any]:
    """Return the config.json of heads for a target."""
    return {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "num_heads": heads.num_heads,
        "num_hidden_layers": heads.num_layers,
        "hidden_size": heads.hidden_size,
        "vocab_size": model.vocab_size,
        "medusa_fc_bias": True,
        "original_lm_head": heads.shares_output,
    }


def _output_layer(reader: TensorReader, source: Source) -> tuple[TensorReader, str]:
    """Return where the target's output layer is: a tensor of its own, or the embedding."""
    family = find_family(source.hf_config)
    model = replace(
        read_facts(source.hf_config, "float32", source.config_file), tie_word_embeddings=False
    )
    own = with_prefix(text_tensors(reader, family.outer_names), family.base_prefix)
    plans = family.tensors(model)
    embedding = next(plan.sources[0] for plan in plans if plan.name == _EMBEDDING)
    for name in (head_name(family, model), embedding):
        if name in own.names():
            return own, name
    raise ConfigError(f"{source.path} has no output layer, which the Medusa heads share")
