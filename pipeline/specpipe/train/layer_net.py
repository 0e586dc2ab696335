"""The decoder layer of an EAGLE-3 drafter, unrolled over draft steps (Li et al. 2025, 2503.01840).

Row t has features of the target's hidden states at token t, and token t + 1; it predicts token
t + 2. In step s > 0 it has its own output of step s - 1 in place of the features, and token t + 1 +
s: the token that it should have drafted. So it learns from its own states, as in decoding
("training-time test"). There it attends to the target's rows up to t and to its own rows of steps 1
to s, which are those of the path that it drafts.

The parameters have the names of the file in the layout of speculators.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from specpipe.train.layer_states import TaughtDocument

Rows = tuple[torch.Tensor, torch.Tensor]  # keys and values [heads, T, size]


class DraftLayer(nn.Module):
    """The tensors of `layers.0`, and its arithmetic."""

    def __init__(self, layer: Mapping[str, Any], draw: torch.Generator) -> None:
        """Begin with random weights; `layer` is the layer's part of config.json."""
        super().__init__()
        hidden, inner = layer["hidden_size"], layer["intermediate_size"]
        self.heads = layer["num_attention_heads"]
        self.groups = layer.get("num_key_value_heads") or self.heads
        self.size = layer.get("head_dim") or hidden // self.heads
        query, key = self.heads * self.size, self.groups * self.size
        self.input_layernorm, self.hidden_norm = RowNorm(layer), RowNorm(layer)
        self.post_attention_layernorm = RowNorm(layer)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": drawn(2 * hidden, query, draw),
                "k_proj": drawn(2 * hidden, key, draw),
                "v_proj": drawn(2 * hidden, key, draw),
                "o_proj": drawn(query, hidden, draw),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": drawn(hidden, inner, draw),
                "up_proj": drawn(hidden, inner, draw),
                "down_proj": drawn(inner, hidden, draw),
            }
        )

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [T, D] plus its MLP."""
        z, part = self.post_attention_layernorm(x), self.mlp
        inner = functional.silu(part["gate_proj"](z)) * part["up_proj"](z)
        added: torch.Tensor = x + part["down_proj"](inner)
        return added

    def rows(self, x: torch.Tensor, turn: Rows) -> tuple[torch.Tensor, Rows]:
        """Return queries, keys and values [heads, T, size] of [T, 2 D], rotated by `turn`."""
        part, count = self.self_attn, len(x)
        query, key, value = (
            part[f"{name}_proj"](x).view(count, -1, self.size).transpose(0, 1) for name in "qkv"
        )
        repeats = self.heads // self.groups
        key, value = (rows.repeat_interleave(repeats, 0) for rows in (rotated(key, turn), value))
        return rotated(query, turn), (key, value)

    def mixed(self, query: torch.Tensor, past: Rows, own: list[Rows]) -> torch.Tensor:
        """Return attention [T, D]: causal over the `past` rows, and each row over its `own`."""
        count, scale = query.shape[1], math.sqrt(self.size)
        later = torch.ones(count, count, dtype=torch.bool, device=query.device).triu(1)
        scores = (query @ past[0].transpose(1, 2)).masked_fill(later, float("-inf"))
        along = [(query * key).sum(-1, keepdim=True) for key, _ in own]
        weights = torch.softmax(torch.cat([scores, *along], -1) / scale, -1)
        out = weights[..., :count] @ past[1]
        for place, (_, value) in enumerate(own):
            out = out + weights[..., count + place, None] * value
        joined: torch.Tensor = self.self_attn["o_proj"](out.transpose(0, 1).reshape(count, -1))
        return joined


class RowNorm(nn.Module):
    """RMSNorm over the last dimension."""

    def __init__(self, layer: Mapping[str, Any]) -> None:
        """Begin with ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(layer["hidden_size"]))
        self.epsilon = float(layer["rms_norm_eps"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Norm [.., D]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weight


def drawn(columns: int, rows: int, draw: torch.Generator) -> nn.Linear:
    """Return a layer without bias, whose outputs are about as large as its inputs."""
    made = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(rows, columns, generator=draw) * columns**-0.5)
    return made


def rotated(x: torch.Tensor, turn: Rows) -> torch.Tensor:
    """Rotate the halves of [heads, T, size] by cosines and sines [T, size]."""
    low, high = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-high, low], -1) * turn[1]


class Eagle3Net(nn.Module):
    """A drafter that is trained; embedding and rotary positions are the target's."""

    def __init__(
        self,
        config: Mapping[str, Any],
        embedding: torch.Tensor,
        output: torch.Tensor,
        norm: torch.Tensor | None,
        seed: int,
    ) -> None:
        """Begin with the target's output rows [V, D] and, if it has one, its final `norm` [D].

        `config` is the drafter's config.json; `embedding` [ids, D] stays as it is.
        """
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        super().__init__()
        layer, draw = config["transformer_layer_config"], torch.Generator().manual_seed(seed)
        width, read = layer["hidden_size"], len(config["eagle_aux_hidden_state_layer_ids"])
        self.fc = drawn(read * width, width, draw)
        self.layers = nn.ModuleList([DraftLayer(layer, draw)])
        self.norm = RowNorm(layer)
        self.lm_head = nn.Linear(width, len(output), bias=False)
        with torch.no_grad():
            self.lm_head.weight.copy_(output.float())
            if norm is not None:
                self.norm.weight.copy_(norm.float())
        self.norm_first = bool(config["norm_before_residual"])
        self.register_buffer("embedding", embedding.detach(), persistent=False)
        self.rope: Any = LlamaRotaryEmbedding(LlamaConfig(**layer))

    def steps(self, document: TaughtDocument, count: int) -> Iterator[torch.Tensor]:
        """Yield the logits [T - 1 - s, V] of each of `count` draft steps; see the module."""
        (layer,), tokens = self.layers, document.tokens[1:]
        assert isinstance(layer, DraftLayer) and isinstance(self.embedding, torch.Tensor)
        features, own = self.fc(document.inputs[:-1]), list[Rows]()
        past: Rows | None = None
        for step in range(min(count, len(tokens))):
            spoken = functional.pad(tokens[step:], (0, step))
            embedded = self.embedding[spoken].float()
            hidden = layer.hidden_norm(features)
            turn = self._turn(step, len(tokens))
            x = torch.cat([layer.input_layernorm(embedded), hidden], -1)
            query, rows = layer.rows(x, turn)
            past, own = (past, [*own, rows]) if past else (rows, own)
            residual = hidden if self.norm_first else features
            features = layer.feed_forward(residual + layer.mixed(query, past, own))
            yield self.lm_head(self.norm(features[: len(tokens) - step]))

    def _turn(self, first: int, count: int) -> Rows:
        """Return cosines and sines [T, size] of the positions from `first` on."""
        places = torch.arange(first, first + count, device=self.fc.weight.device)
        cos, sin = self.rope(self.fc.weight, places[None])
        return cos[0], sin[0]
