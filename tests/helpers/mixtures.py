"""Mixtures of experts whose widths divide for every format, and what their layers compute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from specpipe.core.artifacts import read_model_config
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.weights import Weights, map_weights
from tests.helpers.calibrated_models import round_inputs
from tests.helpers.families import make_family

ATTENTION = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4}
MIXTURES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {**ATTENTION, "intermediate_size": 256},
    "Qwen2MoeForCausalLM": {
        **ATTENTION, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
    },
}  # fmt: skip
PARTS = {  # in HF: the block, and the gate, up and down projections of an expert
    "MixtralForCausalLM": ("block_sparse_moe", ("w1", "w3", "w2")),
    "Qwen2MoeForCausalLM": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


def make_mixture(folder: Path, architecture: str) -> Path:
    return make_family(folder, architecture, "plain", **MIXTURES[architecture])


def expert_weights(
    state: dict[str, torch.Tensor], architecture: str, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `mlp.fc` [E, 2 * I, D] and `mlp.proj` [E, D, I] must be, of HF's tensors."""
    block, (gate, up, down) = PARTS[architecture]
    each = [f"model.layers.{layer}.{block}.experts.{e}" for e in range(4)]
    into = [torch.cat([state[f"{e}.{part}.weight"] for part in (up, gate)]) for e in each]
    return torch.stack(into), torch.stack([state[f"{e}.{down}.weight"] for e in each])


def fake_quantised(folder: Path, checkpoint: Path) -> Any:
    """Return the transformers model whose layers compute as those of a quantised checkpoint do.

    Attention's projections get its weights; what goes into them, and what comes out of an MLP, is
    replaced by hooks, since every release of transformers keeps experts in another way.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tensors, config = map_weights(checkpoint / "rank0.safetensors"), read_model_config(checkpoint)
    query, key = (n * 16 for n in (config.num_attention_heads, config.num_key_value_heads))
    for index, layer in enumerate(model.model.layers):
        at = f"transformer.layers.{index}."
        rows = tensors.float32(f"{at}attention.qkv.weight")
        parts = zip("qkv", torch.tensor(rows).split([query, key, key]), strict=True)
        for part, weight in parts:
            _set(getattr(layer.self_attn, f"{part}_proj"), weight, tensors, f"{at}attention.qkv")
        dense = torch.tensor(tensors.float32(f"{at}attention.dense.weight"))
        _set(layer.self_attn.o_proj, dense, tensors, f"{at}attention.dense")
        block = layer.mlp if hasattr(layer, "mlp") else layer.block_sparse_moe
        block.register_forward_hook(_mixture_hook(tensors, config, f"{at}mlp."))
    return model


def _set(linear: nn.Linear, weight: torch.Tensor, tensors: Weights, name: str) -> None:
    linear.weight.data = weight
    how = tensors.rounding(f"{name}.weight")
    if how is not None:
        linear.register_forward_pre_hook(lambda _, x: (round_inputs(x[0], how),))


def _mixture_hook(tensors: Weights, config: ModelConfig, at: str) -> Callable[..., Any]:
    def hook(module: object, inputs: tuple[torch.Tensor], output: Any) -> Any:
        made = _mixture(inputs[0], tensors, config, at)
        return (made, *output[1:]) if isinstance(output, tuple) else made

    return hook


def _mixture(x: torch.Tensor, tensors: Weights, config: ModelConfig, at: str) -> torch.Tensor:
    """Return what a mixture makes of [.., D]: inputs are rounded, routers see them as they are."""
    assert config.moe is not None

    def of(name: str) -> torch.Tensor:
        return torch.tensor(tensors.float32(f"{at}{name}.weight"))

    def rounded(values: torch.Tensor, name: str) -> torch.Tensor:
        how = tensors.rounding(f"{at}{name}.weight")
        return values if how is None else round_inputs(values, how)

    def expert(prefix: str, fc: torch.Tensor, proj: torch.Tensor) -> torch.Tensor:
        up, gate = (rounded(x, f"{prefix}fc") @ fc.T).chunk(2, dim=-1)
        return rounded(nn.functional.silu(gate) * up, f"{prefix}proj") @ proj.T

    values, chosen = (x @ of("router").T).softmax(dim=-1).topk(config.moe.top_k)
    if config.moe.normalization_mode:
        values = values / values.sum(dim=-1, keepdim=True)
    made = torch.zeros_like(x)
    for e, (fc, proj) in enumerate(zip(of("fc"), of("proj"), strict=True)):
        made += (values * (chosen == e)).sum(dim=-1, keepdim=True) * expert("", fc, proj)
    if config.moe_shared_expert_intermediate_size:
        shared = expert("shared_expert.", of("shared_expert.fc"), of("shared_expert.proj"))
        made += (x @ of("shared_expert_gate").T).sigmoid() * shared
    return made
