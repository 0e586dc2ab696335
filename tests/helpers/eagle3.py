"""EAGLE-3 drafters with random weights, and their arithmetic in plain torch.

The reference is written from the description of the format (docs/conversion.md), without a cache:
it computes all rows of a sequence and of a draft path together.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

IDS = (0, 1)  # the tiny model's layers whose inputs are read
TABLE, OUTPUT = "embed_tokens.weight", "lm_head.weight"


def eagle3_config(layout: str, **changes: Any) -> dict[str, Any]:
    """Return config.json for `make_llama`'s model; `changes` are keys of it or of its layer."""
    layer = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_act": "silu",
    }  # fmt: skip
    layer |= {key: changes.pop(key) for key in layer.keys() & changes}
    if layout == "midlayer":
        ids = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(IDS)}}
        named = {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 100}
        return {**layer, **ids, **named, **changes}
    return {
        "architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3",
        "draft_vocab_size": 100, "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": list(IDS), "transformer_layer_config": layer,
        "speculators_config": {"algorithm": "eagle3", "verifier": {}}, **changes,
    }  # fmt: skip


def make_eagle3(
    folder: Path,
    layout: str = "layers.0",
    *,
    seed: int = 7,
    own: Sequence[str] = (OUTPUT, "d2t", "t2d"),
    tensors: dict[str, torch.Tensor] | None = None,
    without: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """Write a random drafter for `make_llama`'s model into `folder`.

    `own` are its optional tensors; `tensors` are written in addition or in place of its own.
    """
    config = eagle3_config(layout, **changes)
    facts = config.get("transformer_layer_config", config)
    hidden, inner, size = facts["hidden_size"], facts["intermediate_size"], facts["head_dim"]
    query, key = (facts[f"num_{n}_heads"] * size for n in ("attention", "key_value"))
    drafted = config["draft_vocab_size"]
    shapes = {
        "fc.weight": (hidden, 64 * len(IDS)), "norm.weight": (hidden,),
        **{f"{layout}.{n}.weight": (hidden,)
           for n in ("input_layernorm", "hidden_norm", "post_attention_layernorm")},
        f"{layout}.self_attn.q_proj.weight": (query, 2 * hidden),
        f"{layout}.self_attn.k_proj.weight": (key, 2 * hidden),
        f"{layout}.self_attn.v_proj.weight": (key, 2 * hidden),
        f"{layout}.self_attn.o_proj.weight": (hidden, query),
        f"{layout}.mlp.gate_proj.weight": (inner, hidden),
        f"{layout}.mlp.up_proj.weight": (inner, hidden),
        f"{layout}.mlp.down_proj.weight": (hidden, inner),
        TABLE: (facts["vocab_size"], hidden), OUTPUT: (drafted, hidden),
    }  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    found = {n: torch.randn(s, generator=draw) * 0.3 for n, s in shapes.items()}
    found |= {n: 1 + t for n, t in found.items() if "norm" in n}
    ids = torch.randperm(facts["vocab_size"], generator=draw)[:drafted].sort().values
    found["d2t"] = ids - torch.arange(drafted)
    found["t2d"] = torch.zeros(facts["vocab_size"], dtype=torch.bool)
    found["t2d"][ids] = True
    optional = {TABLE, OUTPUT, "d2t", "t2d"} - set(own)
    found = {n: t for n, t in found.items() if n not in {*optional, *without}} | (tensors or {})
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Eagle3Reference:
    """A drafter in plain torch, with the target's hidden states from transformers."""

    def __init__(self, folder: Path, target: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.config = json.loads((folder / "config.json").read_text())
        self.layer = self.config.get("transformer_layer_config", self.config)
        self.weights = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
        self.model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        self.prefix = "midlayer" if "midlayer.hidden_norm.weight" in self.weights else "layers.0"

    @torch.no_grad()
    def logits(self, sequence: Sequence[int], path: Sequence[int] = ()) -> torch.Tensor:
        """Return the drafter's logits [V] after `sequence` and a path of draft tokens."""
        config = self.config.get("eagle_config", self.config)
        ids = config["eagle_aux_hidden_state_layer_ids"]
        known = torch.tensor([list(sequence[:-1])])
        states = self.model(known, output_hidden_states=True).hidden_states
        features = torch.cat([states[i][0] for i in ids], -1) @ self.weights["fc.weight"].T
        tokens = [*sequence[1:], *path]
        for _ in range(len(path) + 1):
            out = self._layer(tokens[: len(features)], features)
            last = self._norm(out[-1], "norm") if self.config.get("norm_output") else out[-1]
            features = torch.cat([features, last[None]])
        head = self.weights.get(OUTPUT, self.model.get_output_embeddings().weight)
        return head @ self._norm(out[-1], "norm")

    def probabilities(self, sequence: Sequence[int], path: Sequence[int] = ()) -> torch.Tensor:
        """Return the probability [ids of the target] of the next token."""
        found = torch.zeros(self.layer["vocab_size"])
        drafted = torch.softmax(self.logits(sequence, path), -1)
        if "d2t" not in self.weights:
            return drafted
        ids = torch.arange(len(drafted)) + self.weights["d2t"].long()
        return found.index_copy(0, ids, drafted)

    def _layer(self, tokens: Sequence[int], features: torch.Tensor) -> torch.Tensor:
        """Return [T, D] for T rows of a token and the features before it."""
        table = self.weights.get(TABLE, self.model.get_input_embeddings().weight)
        token = self._norm(table[torch.tensor(tokens)], f"{self.prefix}.input_layernorm")
        hidden = self._norm(features, f"{self.prefix}.hidden_norm")
        mixed = self._attention(torch.cat([token, hidden], -1))
        x = (hidden if self.config.get("norm_before_residual") else features) + mixed
        z = self._norm(x, f"{self.prefix}.post_attention_layernorm")
        gate, up = (self._linear(z, f"mlp.{n}_proj") for n in ("gate", "up"))
        return x + self._linear(functional.silu(gate) * up, "mlp.down_proj")

    def _attention(self, x: torch.Tensor) -> torch.Tensor:
        heads, groups = self.layer["num_attention_heads"], self.layer["num_key_value_heads"]
        size, count = self.layer["head_dim"], len(x)
        query, key, value = (
            self._linear(x, f"self_attn.{n}_proj").view(count, -1, size) for n in "qkv"
        )
        query, key = self._rotated(query), self._rotated(key)
        mixed = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = query[:, head] @ key[:, group].T / size**0.5
            scores += torch.full((count, count), float("-inf")).triu(1)
            mixed.append(scores.softmax(-1) @ value[:, group])
        return self._linear(torch.cat(mixed, -1), "self_attn.o_proj")

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate [T, heads, size]: row t by t."""
        half = x.shape[-1] // 2
        rope = self.layer.get("rope_parameters", self.layer)
        speed = rope["rope_theta"] ** (-torch.arange(half) / half)
        angle = torch.arange(len(x))[:, None, None] * speed
        low, high = x[..., :half], x[..., half:]
        return torch.cat(
            [low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], -1
        )

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.weights[f"{self.prefix}.{name}.weight"].T

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        root = (x.pow(2).mean(-1, keepdim=True) + self.layer["rms_norm_eps"]).rsqrt()
        return x * root * self.weights[f"{name}.weight"]
