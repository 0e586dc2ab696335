"""The tensors of an EAGLE-3 drafter in its target's checkpoint, and their sources.

Not here: whether a drafter fits its target; see `eagle3`.
"""

from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import Shard, TensorPlan
from specpipe.checkpoint.families.parts import copy, dense, gated_mlp, linear
from specpipe.core.model import ModelConfig

if TYPE_CHECKING:
    import torch


MODULE = "eagle3"


_LAYER = f"{MODULE}.transformer.layers.0."


OPTIONAL = ("embed_tokens.weight", "lm_head.weight", "d2t", "t2d")


def planned_eagle3(
    net: ModelConfig, columns: int, draft_vocab_size: int, optional: Sequence[str], theirs: str
) -> list[TensorPlan]:
    """List the tensors of a drafter whose `fc` reads `columns` values.

    `optional` are those of `OPTIONAL` that it has; `theirs` is the prefix of its layer's tensors.
    """
    hidden, vocab = net.hidden_size, net.vocab_size
    heads = net.num_attention_heads, net.num_key_value_heads, net.num_key_value_heads
    sources = [
        (f"{theirs}self_attn.{n}_proj", count * net.head_size)
        for n, count in zip("qkv", heads, strict=True)
    ]
    norms = {
        "input_layernorm": "input_layernorm",
        "hidden_norm": "hidden_norm",
        "post_layernorm": "post_attention_layernorm",
    }
    plans = [
        copy(f"{MODULE}.fc.weight", "fc.weight", hidden, columns),
        *(copy(f"{_LAYER}{a}.weight", f"{theirs}{b}.weight", hidden) for a, b in norms.items()),
        *linear(f"{_LAYER}attention.qkv", sources, 2 * hidden, Shard.ROWS, bias=net.attn_bias),
        *dense(f"{_LAYER}attention.dense", f"{theirs}self_attn.o_proj", net),
        *gated_mlp(f"{_LAYER}mlp", f"{theirs}mlp", net),
        copy(f"{MODULE}.transformer.ln_f.weight", "norm.weight", hidden),
    ]
    table = f"{MODULE}.transformer.vocab_embedding.weight"
    own = {
        "embed_tokens.weight": copy(table, "embed_tokens.weight", vocab, hidden),
        "lm_head.weight": copy(
            f"{MODULE}.lm_head.weight", "lm_head.weight", draft_vocab_size, hidden
        ),
        "d2t": _planned_ids(draft_vocab_size),
    }
    plans += [own[name] for name in optional if name in own]
    return [replace(plan, shard=Shard.REPLICATED, stage="every") for plan in plans]


def planned_in_target(model: ModelConfig, names: Set[str]) -> list[TensorPlan]:
    """List the tensors of the drafter in a target's checkpoint, whose optional ones are `names`."""
    if (drafter := model.eagle3) is None:
        return []
    columns = len(drafter.layer_ids) * model.hidden_size
    size = drafter.draft_vocab_size
    plans = planned_eagle3(drafter.net, columns, size, OPTIONAL, "layers.0.")
    optional = {plan.name for plan in plans if set(plan.sources) & set(OPTIONAL)}
    return [plan for plan in plans if plan.name not in optional or plan.name in names]


def _planned_ids(count: int) -> TensorPlan:
    """Plan the target's id of every draft token; float32 holds ids up to 2^24."""
    return TensorPlan(
        f"{MODULE}.token_ids", (count,), ("d2t",), ((count,),), join=_token_ids, dtype="float32"
    )


def _token_ids(parts: "Sequence[torch.Tensor]") -> "torch.Tensor":
    """Join: distances to the target's ids, as these ids."""
    import torch

    return parts[0] + torch.arange(len(parts[0]))
