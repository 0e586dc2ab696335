"""Attention of the new tokens over the cache and each other."""

from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.engine.openvino.ops import Builder, integer, ints, scalar, softcap
from specpipe.engine.openvino.weights import Array
from specpipe.model import ModelConfig


@dataclass(frozen=True)
class Position:
    """Rotary tables and masks of the new tokens: inputs of the graph, described in `network.py`."""

    rotary: tuple[ov.Node, ...]  # query_cos, query_sin, key_cos, key_sin; empty: no rotation
    masks: dict[int, ov.Node]  # sliding window (0: none) -> mask


def attention(
    build: Builder, i: int, x: ov.Node, cache: list[ov.Node], position: Position
) -> tuple[ov.Node, list[ov.Node]]:
    """Return [1, M, D] of the normed [1, M, D], and the new keys and values of layer `i`.

    The G queries of a KV head are G rows of one sequence, so keys and values are never repeated.
    The query weights are reordered at build time, so this layout costs nothing at run time.
    """
    model, at = build.model, f"transformer.layers.{i}.attention."
    kv_heads, size = model.num_key_value_heads, model.head_size
    query, key, value = _projections(build, at, x, position)
    past = [op.convert(c, "f32") if build.cache_type != Type.f32 else c for c in cache]
    keys, values = op.concat([past[0], key], 1), op.concat([past[1], value], 1)

    def by_head(t: ov.Node) -> ov.Node:  # [1, n, K, h] -> [1, K, n, h]
        return op.transpose(op.reshape(t, ints(1, -1, kv_heads, size), False), ints(0, 2, 1, 3))

    scores = op.matmul(by_head(query), by_head(keys), False, True)
    scores = op.add(softcap(scores, model.attn_logit_softcapping), position.masks[window(model, i)])
    mixed = op.matmul(op.softmax(scores, -1), by_head(values), False, False)
    width = model.num_attention_heads * size
    mixed = op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(1, -1, width), False)
    dense = build.linear(mixed, f"{at}dense.weight", lambda w: _columns(w, model))
    if model.arithmetic.dense_bias:
        dense = build.add_bias(dense, f"{at}dense.bias")
    return dense, [key, value]


def window(model: ModelConfig, layer: int) -> int:
    """Return the sliding window of a layer; 0 if the layer attends to the whole sequence."""
    windows = model.arithmetic.sliding_windows
    return windows[layer] if windows else 0


def _projections(
    build: Builder, at: str, x: ov.Node, position: Position
) -> tuple[ov.Node, ov.Node, ov.Node]:
    """Return scaled queries [1, M, H, h], keys [1, M, K * h] and values [1, M, K * h]."""
    model = build.model
    heads, kv_heads, size = model.num_attention_heads, model.num_key_value_heads, model.head_size
    qkv = build.linear(x, f"{at}qkv.weight", lambda w: _groups_first(w, model))
    if model.attn_bias:
        qkv = build.add_bias(qkv, f"{at}qkv.bias", lambda b: _groups_first(b, model))
    widths = ints(heads * size, kv_heads * size, kv_heads * size)
    query, key, value = op.variadic_split(qkv, integer(-1), widths).outputs()
    query = op.reshape(query, ints(1, -1, heads, size), False)
    key = op.reshape(key, ints(1, -1, kv_heads, size), False)
    if model.qk_layernorm:
        query = build.rms_norm(query, f"{at}q_layernorm")
        key = build.rms_norm(key, f"{at}k_layernorm")
    if position.rotary:
        query_cos, query_sin, key_cos, key_sin = position.rotary
        query = _rotate(query, query_cos, query_sin, model.rotary_dim)
        key = _rotate(key, key_cos, key_sin, model.rotary_dim)
    else:
        query = op.multiply(query, scalar(model.attention_scale, (1, 1, 1, 1)))
    return query, op.reshape(key, ints(1, -1, kv_heads * size), False), value


def _groups_first(qkv: Array, model: ModelConfig) -> Array:
    """Reorder the query rows of [(H + 2K) * h, D] from (K, G, h) to (G, K, h)."""
    kv_heads, size = model.num_key_value_heads, model.head_size
    rows = model.num_attention_heads * size
    query = qkv[:rows].reshape(kv_heads, -1, size, qkv.shape[1]).swapaxes(0, 1)
    return np.concatenate([query.reshape(rows, -1), qkv[rows:]])


def _columns(dense: Array, model: ModelConfig) -> Array:
    """Reorder the columns of the output projection [D, H * h] from (K, G, h) to (G, K, h)."""
    split = dense.reshape(dense.shape[0], model.num_key_value_heads, -1, model.head_size)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(dense.shape)


def _rotate(x: ov.Node, cos: ov.Node, sin: ov.Node, width: int) -> ov.Node:
    """Apply rotary positions to the first `width` values of every head of [1, M, n, h].

    The CPU plugin fuses exactly these ops into one. Beyond `width`, cos is constant and sin is 0.
    """
    low = op.slice(x, ints(0), ints(width // 2), ints(1), ints(3))
    whole = width == int(x.get_output_partial_shape(0)[3].get_length())
    end = 2**31 - 1 if whole else width
    high = op.slice(x, ints(width // 2), ints(end), ints(1), ints(3))
    parts = [op.multiply(high, scalar(-1, (1, 1, 1, 1))), low]
    if not whole:
        parts.append(op.slice(x, ints(width), ints(2**31 - 1), ints(1), ints(3)))
    return op.add(op.multiply(x, cos), op.multiply(op.concat(parts, -1), sin))
