"""The target as transformers loads it, with the facts that training needs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from specpipe.checkpoint.end_tokens import end_tokens
from specpipe.checkpoint.families import text_part
from specpipe.checkpoint.source import open_source
from specpipe.checkpoint.tokenizer_files import open_tokenizer
from specpipe.core.artifacts import digest_file, digest_json
from specpipe.core.digests import remembered
from specpipe.core.errors import Unsupported
from specpipe.core.model import Dtype

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Target:
    """A frozen model and its tokenizer."""

    model: Any
    tokenizer: Any
    path: Path
    digest: str  # of weights, config and tokenizer
    dtype: Dtype
    end_ids: tuple[int, ...]  # any of them ends an answer; never empty

    @cached_property
    def output(self) -> torch.Tensor:
        """Weights of the LM head: [V, D]."""
        return weights_of(self.model.get_output_embeddings())

    @cached_property
    def embedding(self) -> torch.Tensor:
        """What tokens are read as: [V, D]."""
        return weights_of(self.model.get_input_embeddings())

    @property
    def device(self) -> torch.device:
        """Where token ids go; a spread model has its later layers elsewhere."""
        return self.embedding.device

    @torch.no_grad()
    def hidden(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states, after the final norm: [B, T] -> [B, T, D]."""
        return last_hidden(self.model, ids, mask)


def weights_of(module: Any) -> torch.Tensor:
    """Return the weights of a module, also of one that accelerate loads for each call."""
    if module.weight.device.type != "meta":
        held: torch.Tensor = module.weight
        return held
    from accelerate.utils import align_module_device

    with align_module_device(module):
        copied: torch.Tensor = module.weight.detach().clone()
    return copied


def last_hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return what a model hands to its LM head: [B, T] -> [B, T, D]; ids may be elsewhere."""
    states: torch.Tensor = base_outputs(model, ids, mask).last_hidden_state
    return states


def base_outputs(model: Any, ids: torch.Tensor, mask: torch.Tensor, **wanted: bool) -> Any:
    """Return what a model computes without its LM head; ids [B, T] may be elsewhere."""
    device = model.get_input_embeddings().weight.device
    device = CPU if device.type == "meta" else device  # accelerate's hooks move the ids
    return model.base_model(
        input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **wanted
    )


def recompute_activations(model: Any) -> None:
    """Make the backward pass of a model compute activations again instead of keeping them.

    transformers recomputes only in layers that are `training`; dropout inside of them stays off.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    how = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5
        model.activation_checkpointing_enable(how)
    else:
        model.gradient_checkpointing_enable(how)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def unspread(model: Any) -> Any:
    """Return a copy of a model without what moves its inputs from device to device, if anything."""
    if getattr(model, "hf_device_map", None) is not None:
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)
        del model.hf_device_map
    return model


def load_target(
    path: Path, dtype: Dtype, memory: Path, device: torch.device | Literal["spread"] = CPU
) -> Target:
    """Load a Hugging Face folder, frozen; `memory` remembers file digests.

    `spread`: over all GPUs and the RAM, as accelerate's `device_map: auto` decides.

    Raises Unsupported for a .gguf file and for a text model among several, ConfigError if nothing
    names an end token or there is no tokenizer.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    source = open_source(path)
    if path.is_file():
        raise Unsupported(
            f"{path}: training starts from a Hugging Face folder",
            hint="save the dequantised model as one, as `scripts/fetch-model` does",
        )
    if text_part(source.hf_config, source.config_file)[1]:
        raise Unsupported(
            f"{path}: training a text model within a model for images is not supported",
            hint="save the text model by itself",
        )
    logging.disable_progress_bar()
    tokenizer = open_tokenizer(source).reader
    end_ids = end_tokens(source, tokenizer.eos_token_id)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=DTYPES[dtype],
        local_files_only=True,
        **({"device_map": "auto"} if device == "spread" else {}),
    )
    if isinstance(device, torch.device):
        model = model.to(device)
    # Of a slice that is not contiguous, torch multiplies each sequence by a copy of the weights.
    model.get_output_embeddings().register_forward_pre_hook(lambda _, rows: rows[0].contiguous())
    digest = digest_json({f.name: remembered(f, memory, digest_file) for f in source.files()})
    return Target(model.eval().requires_grad_(False), tokenizer, path, digest, dtype, end_ids)
