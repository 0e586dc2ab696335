"""Attention from plain ops, over the same rows and blocks as paged attention.

    padded_table   [B, N] int32   the blocks of each sequence's cached rows
    padded_rows    [B, n] int32   the rows of each sequence in the call
    padded_back    [T] int32      where each row is among the B * n
    mask.W         [B, 1, n, C]   0 or a large negative number; C = N * BLOCK + n
    key_positions  [B, 1, 1, C]   of every column, only with ALiBi

B sequences with at most n rows and N blocks each; what is shorter is padded with any index. The new
keys and values are outputs, and the host writes them into the blocks. `masks.py` makes the arrays.
"""

import math

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Type
from openvino import opset13 as op

from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.ops import integer, ints, scalar, softcap


def padded_inputs(model: ModelConfig, masks: list[str], *, alibi: bool) -> dict[str, ov.Node]:
    """Return the inputs of padded attention by name."""
    found = {
        name: op.parameter([-1] * rank, Type.i32, name=name)
        for name, rank in (("padded_table", 2), ("padded_rows", 2), ("padded_back", 1))
    }
    for name in masks:
        found[name] = op.parameter([-1, 1, -1, -1], Type.f32, name=name)
    if alibi:
        found["key_positions"] = op.parameter([-1, 1, 1, -1], Type.f32, name="key_positions")
    return found


def padded_attention(
    model: ModelConfig,
    rows: tuple[ov.Node, ov.Node, ov.Node],
    cache: list[ov.Node],
    mask: ov.Node,
    inputs: dict[str, ov.Node],
) -> ov.Node:
    """Return [T, H * h] of queries [T, H * h], keys and values [T, K * h].

    The G queries of a KV head are G * n rows of one product, so keys are never repeated.
    """
    heads, kv_heads, size = model.num_attention_heads, model.num_key_value_heads, model.head_size

    def batched(x: ov.Node, count: int) -> ov.Node:  # [T, count * h] -> [B, count, n, h]
        picked = op.gather(x, inputs["padded_rows"], integer(0))
        return op.transpose(op.reshape(picked, ints(0, 0, count, size), True), ints(0, 2, 1, 3))

    def cached(blocks: ov.Node) -> ov.Node:  # -> [B, K, N * BLOCK, h]
        picked = op.gather(op.convert(blocks, "f32"), inputs["padded_table"], integer(0))
        return op.reshape(op.transpose(picked, ints(0, 2, 1, 3, 4)), ints(0, 0, -1, size), True)

    query, *fresh = rows
    keys, values = (
        op.concat([cached(blocks), batched(new, kv_heads)], 2)
        for blocks, new in zip(cache, fresh, strict=True)
    )
    query = op.multiply(query, scalar(model.attention_scale, (1, 1)))
    query = op.reshape(batched(query, heads), ints(0, kv_heads, -1, size), True)
    scores = softcap(op.matmul(query, keys, False, True), model.attn_logit_softcapping)
    scores = op.add(scores, _bias(model, mask, inputs))
    mixed = op.matmul(op.softmax(scores, -1), values, False, False)  # [B, K, G * n, h]
    mixed = op.transpose(op.reshape(mixed, ints(0, heads, -1, size), True), ints(0, 2, 1, 3))
    return op.gather(
        op.reshape(mixed, ints(-1, heads * size), False), inputs["padded_back"], integer(0)
    )


def _bias(model: ModelConfig, mask: ov.Node, inputs: dict[str, ov.Node]) -> ov.Node:
    """Return [B, 1 or K, G * n, C]: the mask, plus ALiBi's bias of the scores (2108.12409).

    A multiple of the key's position instead of the distance: the two differ by a constant per row,
    which softmax ignores. It is multiplied by the attention scale, as in Falcon.
    """
    kv_heads = model.num_key_value_heads
    groups = model.num_attention_heads // kv_heads
    if "key_positions" not in inputs:
        return op.concat([mask] * groups, 2)
    slopes = slopes_of(model.num_attention_heads) * np.float32(model.attention_scale)
    by_group = slopes.reshape(kv_heads, groups).T.reshape(groups, 1, kv_heads, 1, 1)
    return op.concat(
        [op.add(mask, op.multiply(inputs["key_positions"], op.constant(s))) for s in by_group], 2
    )


def slopes_of(heads: int) -> NDArray[np.float32]:
    """Return the ALiBi slope of every head; computed as in BLOOM if `heads` is no power of two."""
    power = 2 ** math.floor(math.log2(heads))
    first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    rest = [2.0 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(first + rest, np.float32)
