"""The graph of a decoder, built op by op from a TensorRT-LLM checkpoint; no torch.

One call runs new rows of many sequences: a prompt chunk, a root, or a root and a draft tree each.
The rows of all sequences follow each other, without padding. The keys and values of a sequence are
in blocks of BLOCK rows of a pool that the host owns; a table lists the blocks of each sequence.
Paged attention writes the new keys and values into the blocks, after the cached rows and in row
order. Rejected rows are overwritten by the next call, and the host moves accepted rows together.

Shapes: T new rows of B sequences, R rows with requested logits, H heads in K groups of G = H / K,
head size h, L layers.

    tokens     [T] int32           rows       [R] int32, indices into the new rows
    cos, sin   [1, T, 1, h]        rotary positions of the rows
    local_cos, local_sin           the same, for layers with another base
    positions  [T] int32, only for models with learned absolute positions
    past_lens  [B] int32           cached rows
    subsequence_begins    [B + 1]  first row of each sequence, and T
    block_indices         [N]      the tables of all sequences
    block_indices_begins  [B + 1]  first entry of each table, and N
    max_context_len       []       largest number of cached and new rows
    qq_bias               [n * n of each tree] uint8, 1: row i attends to row j
    qq_bias_begins        [B + 1]  an empty matrix: causal
    spread [T'], back [T] int32    rows that enter attention, and where their results are; only in
                                   batch-invariant graphs
    key_cache.i, value_cache.i     [blocks, K, BLOCK, h]
 -> logits     [R, V]              hidden     [R, D], after the final norm
    features   [T, d], with an EAGLE-3 drafter: its reading of the inputs of some layers
    kv         [F, T, K * h]       keys and values of the padded layers (`padded.py`): those of the
                                   first layer, its values, the next layer's keys ...

Type and shape of the caches are dynamic: the plugin chooses them by its property
KV_CACHE_PRECISION. With any other type it would convert the caches and lose what it writes.

In bfloat16, the plugin computes in float32 whatever leads to a float32 result without a product in
between. The result `hidden` thus keeps the residual stream in float32. With a bfloat16 result,
steps took as long, and the logits were less exact.

OpenVINO's CPU plugin recognizes fast paths by pattern: the exact ops below decide which of them are
fused. docs/performance.md has the measurements; `specpipe bench engine` repeats them.
"""

import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.attention import (
    attention,
    has_alibi,
    mask_name,
    padded_layers,
    window,
)
from specpipe.engine.openvino.mlp import mlp
from specpipe.engine.openvino.ops import Builder, integer, ints, scaled, softcap
from specpipe.engine.openvino.padded import padded_inputs
from specpipe.engine.openvino.weights import Weights, int8, plain

TABLES = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


def build_network(
    model: ModelConfig,
    weights: Weights,
    quantization: str,
    max_seq_len: int,
    *,
    batch_invariant: bool = False,
) -> ov.Model:
    """Return the graph of the checkpoint. Equal inputs give equal graphs, names included.

    The rows of a `batch_invariant` graph do not depend on the other rows of a call.
    """
    build = Builder(model, weights, quantization, max_seq_len)
    inputs = _inputs(model, max_seq_len, batch_invariant)
    table = _table(build, "vocab_embedding")
    x = _embed(build, table, inputs)  # [1, T, D]
    caches, new_rows, layer_inputs = [], [], []
    for i in range(model.num_hidden_layers):
        layer_inputs.append(x)
        cache = [cache_input(f"{kind}_cache.{i}") for kind in ("key", "value")]
        x, fresh = _layer(build, i, x, cache, inputs)
        caches += cache
        new_rows += fresh
    picked = op.gather(op.squeeze(x, ints(0)), inputs["rows"], integer(0))  # [R, D]
    hidden = build.norm(op.unsqueeze(picked, ints(0)), "transformer.ln_f")
    outputs = {
        "logits": op.squeeze(_logits(build, hidden, table), ints(0)),
        "hidden": op.squeeze(hidden, ints(0)),
    }
    if (drafter := model.eagle3) is not None:
        read = op.concat([layer_inputs[i] for i in drafter.layer_ids], -1)
        outputs["features"] = op.squeeze(build.plain_linear(read, "eagle3.fc.weight"), ints(0))
    if new_rows:
        outputs["kv"] = op.concat([op.unsqueeze(rows, ints(0)) for rows in new_rows], 0)
    return _model(outputs, [*inputs.values(), *caches])


def columns(model: ModelConfig) -> tuple[int, ...]:
    """Return the input widths of all layers that are quantized."""
    inner = model.num_experts * model.expert_size or model.intermediate_size
    shared = model.moe_shared_expert_intermediate_size
    attended = model.num_attention_heads * model.head_size
    return (model.hidden_size, inner, attended, *((shared,) if shared else ()))


def masked_windows(model: ModelConfig, max_seq_len: int) -> list[int]:
    """Return the distinct windows of the padded layers; 0 stands for full attention."""
    return sorted({window(model, i, max_seq_len) for i in padded_layers(model, max_seq_len)})


def _inputs(model: ModelConfig, max_seq_len: int, batch_invariant: bool) -> dict[str, ov.Node]:
    """Return the inputs by name and in order, without the caches."""
    found, how = {name: indices(name) for name in ("tokens", "rows")}, model.arithmetic
    if model.rotary_dim:
        shape = [1, -1, 1, model.head_size]
        names = ("cos", "sin", *(("local_cos", "local_sin") if how.local_layers else ()))
        found |= {name: op.parameter(shape, Type.f32, name=name) for name in names}
    if model.position_embedding_type == "learned_absolute":
        found["positions"] = indices("positions")
    masks = [mask_name(w) for w in masked_windows(model, max_seq_len)]
    if len(padded_layers(model, max_seq_len)) < model.num_hidden_layers:
        found |= paged_inputs(batch_invariant=batch_invariant)
    return found | (padded_inputs(model, masks, alibi=has_alibi(model)) if masks else {})


def paged_inputs(*, batch_invariant: bool) -> dict[str, ov.Node]:
    """Return the inputs of paged attention by name."""
    found = {name: indices(name) for name in (*TABLES, "qq_bias_begins")}
    found["qq_bias"] = op.parameter([-1], Type.u8, name="qq_bias")
    found["max_context_len"] = op.parameter([], Type.i32, name="max_context_len")
    return found | ({name: indices(name) for name in ("spread", "back")} if batch_invariant else {})


def indices(name: str) -> ov.Node:
    """Return an input of indices."""
    return op.parameter([-1], Type.i32, name=name)


def cache_input(name: str) -> ov.Node:
    """Return the input of a cache, whose type and shape the plugin chooses."""
    return op.parameter(ov.PartialShape.dynamic(4), Type.dynamic, name=name)


def _table(build: Builder, name: str) -> ov.Node:
    return plain(*build.weights.raw(f"transformer.{name}.weight"))


def _embed(build: Builder, table: ov.Node, inputs: dict[str, ov.Node]) -> ov.Node:
    """Return [1, T, D]: the embeddings of the new rows' tokens and positions."""
    x = op.unsqueeze(op.gather(table, inputs["tokens"], integer(0)), ints(0))
    x = scaled(x, build.model.arithmetic.embedding_scale)
    if "positions" not in inputs:
        return x
    rows = op.gather(_table(build, "position_embedding"), inputs["positions"], integer(0))
    return op.add(x, op.unsqueeze(rows, ints(0)))


def _logits(build: Builder, hidden: ov.Node, table: ov.Node) -> ov.Node:
    logits = op.matmul(hidden, _head(build, table), False, True)
    if build.model.arithmetic.head_bias:
        logits = build.add_bias(logits, "lm_head.bias")
    logits = scaled(logits, build.model.arithmetic.logit_scale)
    return softcap(logits, build.model.final_logit_softcapping)


def _head(build: Builder, table: ov.Node) -> ov.Node:
    """Return the output weights; a tied head shares the embedding's constant."""
    tied = build.model.tie_word_embeddings
    if build.quantization == "none":
        return table if tied else plain(*build.weights.raw("lm_head.weight"))
    # int4 is not precise enough for the output layer, which is always int8.
    return int8(*build.weights.raw("lm_head.weight"))


def _layer(
    build: Builder, i: int, x: ov.Node, cache: list[ov.Node], inputs: dict[str, ov.Node]
) -> tuple[ov.Node, list[ov.Node]]:
    how, at = build.model.arithmetic, f"transformer.layers.{i}."
    normed = build.norm(x, f"{at}input_layernorm") if how.pre_norms else x
    attended, fresh = attention(build, i, normed, cache, inputs)
    if how.post_norms:
        attended = build.norm(attended, f"{at}post_layernorm")
    attended = scaled(attended, how.residual_scale)
    if how.residual == "sequential":
        x = op.add(x, attended)
        normed = build.norm(x, f"{at}{how.mlp_norm}") if how.pre_norms else x
    elif how.residual == "parallel":
        normed = build.norm(x, f"{at}{how.mlp_norm}")
    out = mlp(build, f"{at}mlp.", normed)
    if how.post_norms:
        out = build.norm(out, f"{at}post_feedforward_layernorm")
    out = scaled(out, how.residual_scale)
    if how.residual != "sequential":
        out = op.add(out, attended)
    return op.add(x, out), fresh


def _model(outputs: dict[str, ov.Node], inputs: list[ov.Node]) -> ov.Model:
    results = []
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
        results.append(op.result(node))
    for node in inputs:
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    model = ov.Model(results, inputs, "specpipe")
    name_by_order(model)
    return model


def name_by_order(model: ov.Model) -> None:
    """Name every op by its place in the graph; default names depend on earlier graphs."""
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}.{i}")
