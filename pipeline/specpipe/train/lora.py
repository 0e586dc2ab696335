"""Low-rank updates of linear layers (Hu et al. 2021, arXiv 2106.09685), merged when done."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class LoraLinear(nn.Module):
    """A frozen linear layer plus `up @ down`, which begins at zero."""

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        """Wrap `base`; `down` is drawn from a normal distribution, `up` is zero."""
        super().__init__()
        self.base = base
        drawn = torch.randn(rank, base.in_features, generator=generator)
        self.down = nn.Parameter(drawn / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, the update included."""
        result: torch.Tensor = self.base(x)
        return result + functional.linear(functional.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return the layer with the update added to its weights."""
        self.base.weight += (self.up @ self.down).to(self.base.weight.dtype)
        return self.base


def add_lora(model: Any, rank: int, seed: int) -> tuple[nn.Parameter, ...]:
    """Put an update on every linear layer but the LM head; return the weights to train."""
    generator = torch.Generator().manual_seed(seed)
    added: list[nn.Parameter] = []
    for parent, name, layer in _linear_layers(model, nn.Linear):
        if layer is not model.get_output_embeddings():
            wrapped = LoraLinear(layer, rank, generator)
            setattr(parent, name, wrapped)
            added += [wrapped.down, wrapped.up]
    return tuple(added)


def merge_lora(model: Any) -> None:
    """Turn every wrapped layer back into a plain one that includes its update."""
    for parent, name, layer in _linear_layers(model, LoraLinear):
        setattr(parent, name, layer.merged())


def _linear_layers(model: Any, kind: type) -> list[tuple[nn.Module, str, Any]]:
    return [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if isinstance(child, kind) and not isinstance(parent, LoraLinear)
    ]
