"""What families share: tensor plans of linear layers, norms, tables and heads."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from specpipe.checkpoint.families import Join, Shard, TensorPlan
from specpipe.contracts import ModelConfig

if TYPE_CHECKING:
    import torch

BIAS_SHARDS = {Shard.COLUMNS: Shard.REPLICATED}  # added once, after the sum over the ranks


def copy(name: str, source: str, *shape: int, shard: Shard = Shard.REPLICATED) -> TensorPlan:
    """Plan a tensor that is taken as it is."""
    return TensorPlan(name, shape, (source,), (shape,), shard)


def linear(
    name: str, sources: Sequence[tuple[str, int]], columns: int, shard: Shard, *, bias: bool
) -> list[TensorPlan]:
    """Plan a linear layer `name`, whose rows are those of `sources`: (name, rows) of each."""
    rows = [count for _, count in sources]
    weight = TensorPlan(
        f"{name}.weight",
        (sum(rows), columns),
        tuple(f"{source}.weight" for source, _ in sources),
        tuple((count, columns) for count in rows),
        shard,
    )
    if not bias:
        return [weight]
    return [
        weight,
        TensorPlan(
            f"{name}.bias",
            (sum(rows),),
            tuple(f"{source}.bias" for source, _ in sources),
            tuple((count,) for count in rows),
            BIAS_SHARDS.get(shard, shard),
        ),
    ]


def norm(name: str, source: str, size: int, *, bias: bool = False) -> list[TensorPlan]:
    """Plan RMSNorm, or LayerNorm if it has a bias."""
    ends = ("weight", "bias") if bias else ("weight",)
    return [copy(f"{name}.{end}", f"{source}.{end}", size) for end in ends]


def attention(
    name: str, source: str, model: ModelConfig, projections: Sequence[str]
) -> list[TensorPlan]:
    """Plan attention of three separate projections and an output projection, named in this order.

    If queries and keys are normed, HF's `q_norm` and `k_norm` are upstream's.
    """
    query = model.num_attention_heads * model.head_size
    key = model.num_key_value_heads * model.head_size
    *parts, out = (f"{source}.{p}" for p in projections)
    sources = list(zip(parts, (query, key, key), strict=True))
    plans = linear(f"{name}.qkv", sources, model.hidden_size, Shard.QKV, bias=model.attn_bias)
    plans += linear(
        f"{name}.dense",
        [(out, model.hidden_size)],
        query,
        Shard.COLUMNS,
        bias=model.arithmetic.dense_bias,
    )
    if model.qk_layernorm:
        plans += norm(f"{name}.q_layernorm", f"{source}.q_norm", model.head_size)
        plans += norm(f"{name}.k_layernorm", f"{source}.k_norm", model.head_size)
    return plans


def gated_mlp(
    name: str, source: str, model: ModelConfig, inner: int | None = None
) -> list[TensorPlan]:
    """Plan HF's gate_proj, up_proj, down_proj; upstream's `fc` is the gate, its `gate` is not."""
    size, hidden, bias = inner or model.intermediate_size, model.hidden_size, model.mlp_bias
    into = [("fc", "gate_proj"), ("gate", "up_proj")]
    plans = []
    for ours, theirs in into:
        sources = [(f"{source}.{theirs}", size)]
        plans += linear(f"{name}.{ours}", sources, hidden, Shard.ROWS, bias=bias)
    down = [(f"{source}.down_proj", hidden)]
    return plans + linear(f"{name}.proj", down, size, Shard.COLUMNS, bias=bias)


def embedding(source: str, model: ModelConfig) -> TensorPlan:
    """Plan the table of token embeddings."""
    name, shape = "transformer.vocab_embedding.weight", (model.vocab_size, model.hidden_size)
    return copy(name, source, *shape, shard=Shard.EMBEDDING)


def last(plans: Sequence[TensorPlan]) -> list[TensorPlan]:
    """Place tensors behind all layers."""
    return [replace(plan, is_last=True) for plan in plans]


def head(source: str, tied_to: str, model: ModelConfig) -> list[TensorPlan]:
    """Plan `lm_head`; a tied one is written in full, as upstream reads it."""
    name = tied_to if model.tie_word_embeddings else source
    return last(
        linear(
            "lm_head",
            [(name, model.vocab_size)],
            model.hidden_size,
            Shard.HEAD,
            bias=model.arithmetic.head_bias,
        )
    )


def in_layer(index: int, plans: Sequence[TensorPlan]) -> list[TensorPlan]:
    """Give tensors the index of their layer."""
    return [replace(plan, layer=index) for plan in plans]


def joined(plan: TensorPlan, join: Join) -> TensorPlan:
    """Return `plan` with another way to make it of its sources."""
    return replace(plan, join=join)


def transposed(parts: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Join: turn one [in, out] matrix, as GPT-2 stores them, into [out, in]."""
    return parts[0].t()
