"""What families share: tensor plans of linear layers, norms, tables and heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from specpipe.checkpoint.families import Join, Shard, TensorPlan
from specpipe.core.model import ModelConfig

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


def norm(name: str, source: str, model: ModelConfig, size: int | None = None) -> list[TensorPlan]:
    """Plan RMSNorm, or LayerNorm with its bias, as the model norms; of `size` or hidden_size."""
    how = model.arithmetic
    ends = ("weight", "bias") if how.layer_norm and how.norm_bias else ("weight",)
    size = size or model.hidden_size
    return [copy(f"{name}.{end}", f"{source}.{end}", size) for end in ends]


def attention(name: str, source: str, model: ModelConfig, out: str = "o_proj") -> list[TensorPlan]:
    """Plan attention of q_proj, k_proj, v_proj and the output projection `out`.

    If queries and keys are normed, HF's `q_norm` and `k_norm` are upstream's.
    """
    query = model.num_attention_heads * model.head_size
    key = model.num_key_value_heads * model.head_size
    rows = (query, key, key)
    sources = [(f"{source}.{n}_proj", count) for n, count in zip("qkv", rows, strict=True)]
    plans = linear(f"{name}.qkv", sources, model.hidden_size, Shard.QKV, bias=model.attn_bias)
    plans += dense(f"{name}.dense", f"{source}.{out}", model)
    if model.qk_layernorm:
        plans += _qk_norms(name, source, model)
    return plans


def _qk_norms(name: str, source: str, model: ModelConfig) -> list[TensorPlan]:
    ours, theirs = f"{name}.{{}}_layernorm.weight", f"{source}.{{}}_norm.weight"
    if model.arithmetic.qk_norm == "own_heads":
        heads = (("q", model.num_attention_heads, Shard.ROWS),
                 ("k", model.num_key_value_heads, Shard.KEYS))  # fmt: skip
        return [
            copy(ours.format(letter), theirs.format(letter), count, model.head_size, shard=shard)
            for letter, count, shard in heads
        ]
    sizes = zip("qk", model.qk_norm_sizes, strict=True)
    return [copy(ours.format(letter), theirs.format(letter), size) for letter, size in sizes]


def fused_attention(
    name: str, source: str, model: ModelConfig, projections: tuple[str, str], join: Join | None
) -> list[TensorPlan]:
    """Plan attention of one matrix for query, key and value, which `join` sorts, and an output."""
    rows = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_size
    qkv, out = (f"{source}.{part}" for part in projections)
    plans = linear(f"{name}.qkv", [(qkv, rows)], model.hidden_size, Shard.QKV, bias=model.attn_bias)
    return [replace(p, join=join) for p in plans] + dense(f"{name}.dense", out, model)


def dense(name: str, source: str, model: ModelConfig) -> list[TensorPlan]:
    """Plan attention's output projection."""
    columns = model.num_attention_heads * model.head_size
    rows, bias = [(source, model.hidden_size)], model.arithmetic.dense_bias
    return linear(name, rows, columns, Shard.COLUMNS, bias=bias)


def plain_mlp(name: str, source: str, model: ModelConfig, up: str, down: str) -> list[TensorPlan]:
    """Plan an MLP without a gate, of HF's projections `up` and `down`."""
    hidden, inner, bias = model.hidden_size, model.intermediate_size, model.mlp_bias
    into = linear(f"{name}.fc", [(f"{source}.{up}", inner)], hidden, Shard.ROWS, bias=bias)
    out = [(f"{source}.{down}", hidden)]
    return into + linear(f"{name}.proj", out, inner, Shard.COLUMNS, bias=bias)


def gated_mlp(
    name: str,
    source: str,
    model: ModelConfig,
    projections: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[TensorPlan]:
    """Plan HF's gate, up and down projections; upstream's `fc` is the gate, its `gate` is not."""
    hidden, inner, bias = model.hidden_size, model.intermediate_size, model.mlp_bias
    *into, down = (f"{source}.{projection}" for projection in projections)
    plans = []
    for ours, theirs in zip(("fc", "gate"), into, strict=True):
        plans += linear(f"{name}.{ours}", [(theirs, inner)], hidden, Shard.ROWS, bias=bias)
    return plans + linear(f"{name}.proj", [(down, hidden)], inner, Shard.COLUMNS, bias=bias)


def fused_mlp(name: str, source: str, model: ModelConfig) -> list[TensorPlan]:
    """Plan HF's `gate_up_proj`, which holds the gate first, upstream's last, and `down_proj`."""
    hidden, inner = model.hidden_size, model.intermediate_size
    into = [(f"{source}.gate_up_proj", 2 * inner)]
    out = [(f"{source}.down_proj", hidden)]
    plans = linear(f"{name}.fc", into, hidden, Shard.GATED, bias=False)
    plans = [replace(plan, join=halves_swapped) for plan in plans]
    return plans + linear(f"{name}.proj", out, inner, Shard.COLUMNS, bias=False)


def experts(
    name: str, source: str, model: ModelConfig, count: int, projections: tuple[str, str, str]
) -> list[TensorPlan]:
    """Plan stacked experts of HF's gate, up and down projections: [E, 2 * I, D] and [E, D, I].

    Upstream's fused matrix holds what is gated first, then the gate.
    """
    hidden, inner = model.hidden_size, model.expert_size
    gate, up, down = projections
    each = [f"{source}.{e}" for e in range(count)]
    return [
        TensorPlan(
            f"{name}.fc.weight",
            (count, 2 * inner, hidden),
            tuple(f"{e}.{part}.weight" for e in each for part in (up, gate)),
            ((inner, hidden),) * (2 * count),
            Shard.EXPERT_GATED,
        ),
        TensorPlan(
            f"{name}.proj.weight",
            (count, hidden, inner),
            tuple(f"{e}.{down}.weight" for e in each),
            ((hidden, inner),) * count,
            Shard.EXPERT_COLUMNS,
        ),
    ]


def router(name: str, source: str, model: ModelConfig, count: int) -> TensorPlan:
    """Plan the router, which upstream keeps in float32: it decides which experts are used."""
    return replace(copy(name, source, count, model.hidden_size), dtype="float32")


def embedding(source: str, model: ModelConfig) -> TensorPlan:
    """Plan the table of token embeddings."""
    name, shape = "transformer.vocab_embedding.weight", (model.vocab_size, model.hidden_size)
    return copy(name, source, *shape, shard=Shard.EMBEDDING)


def last(plans: Sequence[TensorPlan]) -> list[TensorPlan]:
    """Place tensors after all layers."""
    return [replace(plan, stage="last") for plan in plans]


def head(source: str, tied_to: str, model: ModelConfig) -> list[TensorPlan]:
    """Plan `lm_head`; a tied one is written in full, as upstream reads it, with its own bias."""
    rows, bias = [(source, model.vocab_size)], model.arithmetic.head_bias
    weight, *biases = linear("lm_head", rows, model.hidden_size, Shard.HEAD, bias=bias)
    if model.tie_word_embeddings:
        weight = replace(weight, sources=(f"{tied_to}.weight",))
    return last([weight, *biases])


@dataclass(frozen=True)
class Names:
    """What HF calls the parts of a decoder around its layers."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"


Layer = Callable[[ModelConfig, str, str], list[TensorPlan]]  # model, our prefix, theirs


def decoder(model: ModelConfig, layer: Layer, names: Names = Names()) -> list[TensorPlan]:
    """List every tensor of a model, in the order in which it is written."""
    plans = [embedding(f"{names.embedding}.weight", model)]
    for i in range(model.num_hidden_layers):
        parts = layer(model, f"transformer.layers.{i}.", f"{names.layers}.{i}.")
        plans += [replace(plan, layer=i) for plan in parts]
    plans += last(norm("transformer.ln_f", names.norm, model))
    return plans + head(names.head, names.embedding, model)


def llama_layer(model: ModelConfig, ours: str, theirs: str) -> list[TensorPlan]:
    """Plan a layer that is named as in HF's Llama."""
    return [
        *norm(f"{ours}input_layernorm", f"{theirs}input_layernorm", model),
        *attention(f"{ours}attention", f"{theirs}self_attn", model),
        *norm(f"{ours}post_layernorm", f"{theirs}post_attention_layernorm", model),
        *gated_mlp(f"{ours}mlp", f"{theirs}mlp", model),
    ]


def ignored(name: str, model: ModelConfig) -> bool:
    """Tell whether a source tensor may be left out: rotary buffers, and the copy of a tied head."""
    tied_head = model.tie_word_embeddings and name == "lm_head.weight"
    return tied_head or name.endswith(("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias"))


def no_keys(model: ModelConfig) -> dict[str, Any]:
    """Return no further keys for config.json: no release of TensorRT-LLM would read them."""
    return {}


def transposed(parts: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Join: turn one [in, out] matrix, as GPT-2 stores them, into [out, in]."""
    return parts[0].t()


def plus_one(parts: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Join: turn the weight w of a norm that scales with 1 + w into 1 + w."""
    return parts[0].float() + 1


def halves_swapped(parts: Sequence["torch.Tensor"]) -> "torch.Tensor":
    """Join: put the second half of the rows first."""
    return parts[0].roll(len(parts[0]) // 2, 0)


def ungrouped(parts: Sequence["torch.Tensor"], *, kv_heads: int, head_size: int) -> "torch.Tensor":
    """Join: turn rows (group: queries, key, value) into all queries, all keys, all values."""
    import torch

    grouped = parts[0].reshape(kv_heads, -1, head_size, *parts[0].shape[1:])
    query, key, value = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    rest = parts[0].shape[1:]
    return torch.cat([part.reshape(-1, *rest) for part in (query, key, value)])


def sort_groups(model: ModelConfig) -> Join:
    """Return the join that sorts the rows of a model's grouped query, key and value."""
    return partial(ungrouped, kv_heads=model.num_key_value_heads, head_size=model.head_size)
