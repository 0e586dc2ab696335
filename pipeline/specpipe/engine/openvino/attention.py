"""Attention of the new rows of a call over the cached rows and each other.

Two kinds, chosen for every layer when the graph is built. Paged attention reads and writes the KV
blocks in place. Its position of a row is the row's place in its sequence, so a layer with a sliding
window or ALiBi cannot use it for trees; and it has no soft-capping of scores. Such layers use the
padded attention of `padded.py`.
"""

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.op import _PagedAttentionExtension

from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.ops import Builder, integer, ints
from specpipe.engine.openvino.padded import padded_attention

Inputs = dict[str, ov.Node]

PAGED = "PagedAttentionExtension"  # type name of the op


def window(model: ModelConfig, layer: int, max_seq_len: int) -> int:
    """Return the sliding window of a layer; 0 if the layer attends to the whole sequence."""
    windows = model.arithmetic.sliding_windows
    size = windows[layer] if windows else 0
    return size if size < max_seq_len else 0


def has_alibi(model: ModelConfig) -> bool:
    """Tell whether the model adds ALiBi to its scores."""
    return model.position_embedding_type == "alibi_with_scale"


def padded_layers(model: ModelConfig, max_seq_len: int) -> list[int]:
    """Return the layers that paged attention cannot express."""
    layers = range(model.num_hidden_layers)
    if model.attn_logit_softcapping is not None or has_alibi(model):
        return list(layers)
    return [i for i in layers if window(model, i, max_seq_len)]


def attention(
    build: Builder, i: int, x: ov.Node, cache: list[ov.Node], inputs: Inputs
) -> tuple[ov.Node, list[ov.Node]]:
    """Return [1, T, D] of the normed [1, T, D] in layer `i`.

    The second value holds the new keys and values [T, K * h] that the host must write: none for
    paged attention.
    """
    model, at = build.model, f"transformer.layers.{i}.attention."
    query, key, value = _projections(build, i, x, inputs)
    fresh: list[ov.Node] = []
    if i in padded_layers(model, build.max_seq_len):
        mask = inputs[mask_name(window(model, i, build.max_seq_len))]
        mixed = padded_attention(model, (query, key, value), cache, mask, inputs)
        fresh = [key, value]
    else:
        mixed = _paged_attention(model, (query, key, value), cache, inputs)
    mixed = op.unsqueeze(mixed, ints(0))
    dense = build.linear(mixed, f"{at}dense.weight")
    if model.arithmetic.dense_bias:
        dense = build.add_bias(dense, f"{at}dense.bias")
    return dense, fresh


def mask_name(sliding_window: int) -> str:
    """Return the name of the mask input of padded layers with this window."""
    return f"mask.{sliding_window}"


def _projections(
    build: Builder, i: int, x: ov.Node, inputs: Inputs
) -> tuple[ov.Node, ov.Node, ov.Node]:
    """Return queries [T, H * h], keys [T, K * h] and values [T, K * h], rotated."""
    model, at = build.model, f"transformer.layers.{i}.attention."
    heads, kv_heads, size = model.num_attention_heads, model.num_key_value_heads, model.head_size
    qkv = build.linear(x, f"{at}qkv.weight")
    if model.attn_bias:
        qkv = build.add_bias(qkv, f"{at}qkv.bias")
    widths = ints(heads * size, kv_heads * size, kv_heads * size)
    query, key, value = op.variadic_split(qkv, integer(-1), widths).outputs()
    whole = model.arithmetic.qk_norm == "projection"
    if model.qk_layernorm and whole:
        query, key = build.norm(query, f"{at}q_layernorm"), build.norm(key, f"{at}k_layernorm")
    query = op.reshape(query, ints(1, -1, heads, size), False)
    key = op.reshape(key, ints(1, -1, kv_heads, size), False)
    if model.qk_layernorm and not whole:
        query, key = build.norm(query, f"{at}q_layernorm"), build.norm(key, f"{at}k_layernorm")
    if model.rotary_dim and i not in model.arithmetic.unrotated_layers:
        which = "local_" if i in model.arithmetic.local_layers else ""
        cos, sin = inputs[f"{which}cos"], inputs[f"{which}sin"]
        query, key = (_rotate(_halved(model, x), cos, sin, model.rotary_dim) for x in (query, key))
    return _flat(query, heads * size), _flat(key, kv_heads * size), _flat(value, kv_heads * size)


def _halved(model: ModelConfig, x: ov.Node) -> ov.Node:
    """Return [1, T, n, h] with what is rotated together in the two halves of `rotary_dim`.

    Queries and keys are reordered alike, so their products stay the same.
    """
    if model.position_embedding_type != "rope_gptj":
        return x
    pairs = np.arange(model.rotary_dim).reshape(-1, 2)
    order = np.concatenate([pairs.T.reshape(-1), np.arange(model.rotary_dim, model.head_size)])
    return op.gather(x, op.constant(order), integer(3))


def _flat(x: ov.Node, width: int) -> ov.Node:
    return op.reshape(x, ints(-1, width), False)


def _rotate(x: ov.Node, cos: ov.Node, sin: ov.Node, width: int) -> ov.Node:
    """Apply rotary positions to the first `width` values of every head of [1, T, n, h].

    The CPU plugin fuses exactly these ops into one. Beyond `width`, cos is constant and sin is 0.
    """
    low = op.slice(x, ints(0), ints(width // 2), ints(1), ints(3))
    whole = width == int(x.get_output_partial_shape(0)[3].get_length())
    end = 2**31 - 1 if whole else width
    high = op.slice(x, ints(width // 2), ints(end), ints(1), ints(3))
    parts = [op.multiply(high, op.constant(np.full((1, 1, 1, 1), -1, np.float32))), low]
    if not whole:
        parts.append(op.slice(x, ints(width), ints(2**31 - 1), ints(1), ints(3)))
    return op.add(op.multiply(x, cos), op.multiply(op.concat(parts, -1), sin))


def _paged_attention(
    model: ModelConfig,
    rows: tuple[ov.Node, ov.Node, ov.Node],
    cache: list[ov.Node],
    inputs: Inputs,
) -> ov.Node:
    """Return [T, H * h]. Writes the new keys and values into `cache`.

    With `spread`, the rows [T'] of the op are picked from the T rows, and `back` picks T of its
    results.
    """
    if "spread" in inputs:
        query, key, value = (op.gather(x, inputs["spread"], integer(0)) for x in rows)
    else:
        query, key, value = rows

    def none(kind: type) -> ov.Node:
        return op.constant(np.zeros(0, kind))

    def zero() -> ov.Node:
        return op.constant(np.int32(0))

    tables = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
    found = [
        *(query, key, value, *cache, *(inputs[name] for name in tables)),
        op.constant(np.float32(model.attention_scale)),
        *(zero(), none(np.float32), inputs["max_context_len"]),  # sliding window, ALiBi
        none(np.int32),  # window of aggregated scores
        *(none(np.int32), none(np.int32), none(np.float32)),  # rotation of cached keys
        *(none(np.float32), zero(), zero()),  # sparse attention
        none(np.float32),  # sinks
        *(zero(), none(np.int32), none(np.int32), none(np.int32)),  # eviction by diversity
        none(np.int32),  # types of tokens
        *(inputs["qq_bias"], inputs["qq_bias_begins"]),
    ]
    node = _PagedAttentionExtension([x if isinstance(x, ov.Output) else x.output(0) for x in found])
    describe_paged(node, model)
    mixed: ov.Node = node.output(0)  # the op has further results
    return op.gather(mixed, inputs["back"], integer(0)) if "back" in inputs else mixed


def describe_paged(node: ov.Node, model: ModelConfig) -> None:
    """Set the facts that the plugin reads from the op; a saved graph does not keep them."""
    facts = node.get_rt_info()
    facts["num_k_heads"] = facts["num_v_heads"] = model.num_key_value_heads
    facts["k_head_size"] = facts["v_head_size"] = model.head_size
