"""Medusa heads: residual blocks on the target's last hidden state, in FasterDecoding's layout.

Head k is `output(x + SiLU(W x + b))`, with as many residual blocks as it has layers (Cai et al.
2024, arXiv 2401.10774, section 2.1.1). W and b begin at zero, so every head begins as the LM head.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from specpipe.checkpoint.medusa import WEIGHTS
from specpipe.core.artifacts import write_text


@dataclass(frozen=True)
class HeadsConfig:
    """config.json next to the weights; the names are FasterDecoding's, the last ones are ours."""

    medusa_num_heads: int
    medusa_num_layers: int
    base_model_name_or_path: str
    hidden_size: int
    vocab_size: int
    share_output: bool  # the output layers are the base model's LM head, and not in the file


class MedusaHeads(nn.Module):
    """Heads that map hidden states to features; the output layer turns those into logits."""

    def __init__(
        self, heads: int, layers: int, output: torch.Tensor, *, share_output: bool
    ) -> None:
        """Begin as the LM head, whose weights are `output` [V, D]."""
        super().__init__()
        self.layers = layers
        width = int(output.shape[1])
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width) for _ in range(layers)) for _ in range(heads)
        )
        for parameter in self.blocks.parameters():
            nn.init.zeros_(parameter)
        copies = [] if share_output else [output.detach().float().clone() for _ in range(heads)]
        self.outputs = nn.ParameterList(nn.Parameter(copy) for copy in copies)

    def features(self, hidden: torch.Tensor, spoken: torch.Tensor) -> list[torch.Tensor]:
        """Return what each head hands to its output layer: [N, D] -> heads x [N, D].

        Heads do not look at the tokens that were `spoken` after it.
        """
        result = []
        for blocks in self.blocks:
            x = hidden
            for block in blocks:  # type: ignore[attr-defined]
                x = x + functional.silu(block(x))
            result.append(x)
        return result

    def output(self, head: int, shared: torch.Tensor) -> torch.Tensor:
        """Return the output layer of a head: its own, or the shared one, [V, D]."""
        return self.outputs[head] if len(self.outputs) else shared


def write_heads(heads: MedusaHeads, config: HeadsConfig, folder: Path) -> None:
    """Write `medusa_lm_head.safetensors` in float16, and `config.json`."""
    from safetensors.torch import save_file

    tensors = {name: t.to(torch.float16).contiguous() for name, t in _named(heads).items()}
    save_file(tensors, folder / WEIGHTS)
    text = json.dumps(asdict(config), indent=2, sort_keys=True) + "\n"
    write_text(folder / "config.json", text)


def _named(heads: MedusaHeads) -> Mapping[str, torch.Tensor]:
    """Return the weights under FasterDecoding's names: `{head}.{layer}.linear.weight` ..."""
    named: dict[str, torch.Tensor] = {}
    for h, blocks in enumerate(heads.blocks):
        layers: list[nn.Linear] = list(blocks.children())  # type: ignore[arg-type]
        for i, block in enumerate(layers):
            named[f"{h}.{i}.linear.weight"] = block.weight.detach()
            named[f"{h}.{i}.linear.bias"] = block.bias.detach()
    for h, output in enumerate(heads.outputs):
        named[f"{h}.{heads.layers}.weight"] = output.detach()
    return named
