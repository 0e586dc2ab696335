"""The graph of a decoder, built op by op from a TensorRT-LLM checkpoint; no torch.

It never needs rewinding: the KV cache comes in as plain inputs (a prefix of the host's buffers, not
copied), a mask says what every new token may see (a chain, a tree or a window are all just masks),
and only the new rows go out. The host writes the accepted rows into the buffers, and nothing else.

Shapes: M new tokens, P cached rows, R rows that logits are wanted for, H heads in K groups of
G = H / K, head size h, L layers.

    tokens     [M] int32           rows       [R] int32, indices into the new tokens
    query_cos, query_sin  [1, M, 1, h], times 1 / sqrt(h): they carry the softmax's scale
    key_cos, key_sin      [1, M, 1, h]
    mask       [1, 1, M * G, P + M], 0 or a large negative number
    key.i      [1, P, K * h]       value.i    [1, P, K * h]
 -> logits     [R, V]              hidden     [R, D], after the final norm
    kv         [2 * L, M, K * h]   new keys and values: layer 0's keys, its values, layer 1's ...

OpenVINO's CPU plugin decides by pattern what it runs fast; what is fused depends on the exact ops
below. docs/performance.md has the measurements, scripts/bench-engine makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as op
from openvino.op.util import Variable, VariableInfo
from openvino.utils.node_factory import NodeFactory

from specpipe.contracts import ModelConfig
from specpipe.engine.openvino.weights import Weights, int4, int8, plain, rounded

ROTARY = ("query_cos", "query_sin", "key_cos", "key_sin")


@dataclass(frozen=True)
class _Builder:
    """What every layer needs; `linear` turns weights [n, k] into a node."""

    model: ModelConfig
    weights: Weights
    quantization: str
    cache_type: Type

    def linear(self, x: ov.Node, name: str, order: "Reorder | None" = None) -> ov.Node:
        """Multiply `x` with the transposed weights `name`, reordered first if asked."""
        array, dtype = self.weights.raw(name)
        if order is not None:
            array = order(array)
        if self.quantization == "none":
            node = plain(array, dtype)
        else:
            wide = (
                self.weights.float32(name) if order is None else order(self.weights.float32(name))
            )
            node = {"int8": int8, "int4": int4}[self.quantization](wide)
        return op.matmul(self._rounded(x, name, order), node, False, True)

    def _rounded(self, x: ov.Node, name: str, order: "Reorder | None") -> ov.Node:
        """Round the inputs of a layer that was quantised for a GPU, as it does."""
        how = self.weights.rounding(name)
        if how is None:
            return x
        scale = how.scale
        if scale is not None and order is not None:  # what moves columns moves their scales
            rows = self.weights.raw(name)[0].shape[0]
            scale = order(np.broadcast_to(scale, (rows, len(scale))))[0]
        return rounded(x, how, scale)


Reorder = Callable[[np.ndarray], np.ndarray]  # type: ignore[type-arg]


def build_network(
    model: ModelConfig, weights: Weights, quantization: str, cache_type: ov.Type
) -> ov.Model:
    """Return the graph of the checkpoint. Equal inputs give equal graphs, names included."""
    build = _Builder(model, weights, quantization, cache_type)
    inputs = _inputs(model)
    tokens, rows, *position = inputs
    table = _embedding(build)
    x = op.unsqueeze(op.gather(table, tokens, _int(0)), _ints(0))  # [1, M, D]
    caches, new_rows = [], []
    for i in range(model.num_hidden_layers):
        cache = [_cache_input(build, f"{kind}.{i}") for kind in ("key", "value")]
        x, fresh = _layer(build, i, x, cache, position)
        caches += cache
        new_rows += fresh
    picked = op.gather(op.squeeze(x, _ints(0)), rows, _int(0))  # [R, D]
    hidden = _norm(build, op.unsqueeze(picked, _ints(0)), "transformer.ln_f.weight")
    logits = op.matmul(hidden, _head(build, table), False, True)
    outputs = {
        "logits": op.squeeze(logits, _ints(0)),
        "hidden": op.squeeze(hidden, _ints(0)),
        "kv": op.convert(op.concat(new_rows, 0), cache_type),
    }
    return _model(outputs, [*inputs, *caches])


def _inputs(model: ModelConfig) -> list[ov.Node]:
    h = model.head_size
    return [
        op.parameter([-1], Type.i32, name="tokens"),
        op.parameter([-1], Type.i32, name="rows"),
        *(op.parameter([1, -1, 1, h], Type.f32, name=name) for name in ROTARY),
        op.parameter([1, 1, -1, -1], Type.f32, name="mask"),
    ]


def _cache_input(build: _Builder, name: str) -> ov.Node:
    width = build.model.num_key_value_heads * build.model.head_size
    return op.parameter([1, -1, width], build.cache_type, name=name)


def _embedding(build: _Builder) -> ov.Node:
    array, dtype = build.weights.raw("transformer.vocab_embedding.weight")
    return plain(array, dtype)


def _head(build: _Builder, table: ov.Node) -> ov.Node:
    """Return the output weights; a tied head shares the embedding's constant."""
    tied = build.model.tie_word_embeddings
    if build.quantization == "none":
        return table if tied else plain(*build.weights.raw("lm_head.weight"))
    # Four bits are too few for the output layer: it stays at eight.
    return int8(build.weights.float32("lm_head.weight"))


def _layer(
    build: _Builder,
    i: int,
    x: ov.Node,
    cache: list[ov.Node],
    position: list[ov.Node],
) -> tuple[ov.Node, list[ov.Node]]:
    at = f"transformer.layers.{i}."
    attended, fresh = _attention(
        build, at, _norm(build, x, f"{at}input_layernorm.weight"), cache, position
    )
    x = op.add(x, attended)
    normed = _norm(build, x, f"{at}post_layernorm.weight")
    gate = _swish(build.linear(normed, f"{at}mlp.fc.weight"))  # HF's gate_proj
    up = build.linear(normed, f"{at}mlp.gate.weight")  # HF's up_proj
    return op.add(x, build.linear(op.multiply(gate, up), f"{at}mlp.proj.weight")), fresh


def _attention(
    build: _Builder,
    at: str,
    x: ov.Node,
    cache: list[ov.Node],
    position: list[ov.Node],
) -> tuple[ov.Node, list[ov.Node]]:
    """Grouped-query attention of the new tokens over the cache and each other.

    The G queries of a KV head are laid out as G rows of one sequence, so that keys and values are
    never repeated; the query weights are reordered at build time to make that layout free.
    """
    model, (*query_rotary, key_cos, key_sin, mask) = build.model, position
    heads, kv_heads, size = model.num_attention_heads, model.num_key_value_heads, model.head_size
    qkv = build.linear(x, f"{at}attention.qkv.weight", lambda w: _groups_first(w, model))
    widths = _ints(heads * size, kv_heads * size, kv_heads * size)
    query, key, value = op.variadic_split(qkv, _int(-1), widths).outputs()
    query = _rotate(op.reshape(query, _ints(1, -1, heads, size), False), *query_rotary)
    key = _rotate(op.reshape(key, _ints(1, -1, kv_heads, size), False), key_cos, key_sin)
    key = op.reshape(key, _ints(1, -1, kv_heads * size), False)
    past = [op.convert(c, "f32") if build.cache_type != Type.f32 else c for c in cache]
    keys, values = op.concat([past[0], key], 1), op.concat([past[1], value], 1)

    def by_head(t: ov.Node) -> ov.Node:  # [1, n, K, h] -> [1, K, n, h]
        return op.transpose(op.reshape(t, _ints(1, -1, kv_heads, size), False), _ints(0, 2, 1, 3))

    scores = op.add(op.matmul(by_head(query), by_head(keys), False, True), mask)
    mixed = op.matmul(op.softmax(scores, -1), by_head(values), False, False)
    mixed = op.reshape(op.transpose(mixed, _ints(0, 2, 1, 3)), _ints(1, -1, heads * size), False)
    out = build.linear(mixed, f"{at}attention.dense.weight", lambda w: _columns(w, model))
    return out, [key, value]


def _groups_first(qkv: np.ndarray, model: ModelConfig) -> np.ndarray:  # type: ignore[type-arg]
    """Reorder the query rows of [(H + 2K) * h, D] from (K, G, h) to (G, K, h)."""
    kv_heads, size = model.num_key_value_heads, model.head_size
    rows = model.num_attention_heads * size
    query = qkv[:rows].reshape(kv_heads, -1, size, qkv.shape[1]).swapaxes(0, 1)
    return np.concatenate([query.reshape(rows, -1), qkv[rows:]])


def _columns(dense: np.ndarray, model: ModelConfig) -> np.ndarray:  # type: ignore[type-arg]
    """Reorder the columns of the output projection [D, H * h] likewise."""
    split = dense.reshape(dense.shape[0], model.num_key_value_heads, -1, model.head_size)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(dense.shape)


def _rotate(x: ov.Node, cos: ov.Node, sin: ov.Node) -> ov.Node:
    """Apply rotary positions to [1, M, n, h]; these very ops are fused into one by the plugin."""
    half = int(x.get_output_partial_shape(0)[3].get_length()) // 2
    low = op.slice(x, _ints(0), _ints(half), _ints(1), _ints(3))
    high = op.slice(x, _ints(half), _ints(2**31 - 1), _ints(1), _ints(3))
    turned = op.concat([op.multiply(high, _float(-1, (1, 1, 1, 1))), low], -1)
    return op.add(op.multiply(x, cos), op.multiply(turned, sin))


def _norm(build: _Builder, x: ov.Node, name: str) -> ov.Node:
    """RMSNorm over the last dimension of [1, n, D]."""
    one = (1, 1, 1)
    mean = op.reduce_mean(op.power(x, _float(2, one)), _ints(-1), True)
    root = op.sqrt(op.add(mean, _float(build.model.norm_epsilon, one)))
    normed = op.multiply(x, op.divide(_float(1, one), root))
    return op.multiply(op.constant(build.weights.float32(name).reshape(1, 1, -1)), normed)


def _swish(x: ov.Node) -> ov.Node:
    # The helper in opset13 adds a beta input, which keeps the plugin from fusing the MLP.
    return NodeFactory("opset4").create("Swish", [x.output(0)], {})


def _ints(*values: int) -> ov.Node:
    return op.constant(np.array(values, np.int64))


def _int(value: int) -> ov.Node:
    return op.constant(np.int64(value))


def _float(value: float, shape: tuple[int, ...]) -> ov.Node:
    return op.constant(np.full(shape, value, np.float32))


def _model(outputs: dict[str, ov.Node], inputs: list[ov.Node]) -> ov.Model:
    results = []
    for name, node in outputs.items():
        node.output(0).get_tensor().set_names({name})
        results.append(op.result(node))
    for node in inputs:
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
    model = ov.Model(results, [_language_model_mark()], inputs, "specpipe")
    name_by_order(model)
    return model


def name_by_order(model: ov.Model) -> None:
    """Name every op by its place; by default names count every op that the process ever made."""
    for i, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}.{i}")


def _language_model_mark() -> ov.Node:
    """Return a sink that makes the CPU plugin treat the graph as a language model.

    The plugin looks for an attention op and a state. Only then does it multiply float32 activations
    with 16-bit weights directly, instead of widening them at load time (25 ms against 16 ms a step
    for SmolLM2-135M). Ours is one number that attends to itself; it influences nothing.
    """
    info = VariableInfo()
    info.data_shape, info.data_type, info.variable_id = (
        ov.PartialShape([1, 1, 1, 1]),
        Type.f32,
        "mark",
    )
    Variable(info)
    zero = _float(0, (1, 1, 1, 1))
    state = op.read_value(zero, "mark", Type.f32, ov.PartialShape([1, 1, 1, 1]))
    attended = op.scaled_dot_product_attention(state, state, state, zero, _float(1, ()))
    return op.assign(attended, "mark")
