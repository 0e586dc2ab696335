"""The graph of an EAGLE-3 drafter: one decoder layer on embeddings and hidden states (2503.01840).

    tokens [T] int32, features [T, D], rows [R] int32, cos, sin, and the inputs of paged attention
    and the caches of one layer, as in `network.py`
 -> predicted [R, WIDTH] int32, the target's ids, likeliest first;  probs [R, WIDTH];  states [R, D]

Row t has the features of the target's row t, or the state of its parent, and the token after it.
It predicts the next token, and its state is the features of its children. The layer reads both
halves, each with a norm of its own; it adds its results to the second (SafeAILab/EAGLE,
eagle/model/cnets.py).

The output layer is kept in 8 bits, as that of Medusa heads, unless the engine is to be exact.
"""

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.core.drafters import Eagle3Drafter
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.attention import attention
from specpipe.engine.openvino.heads import likeliest, named_model, output_rows
from specpipe.engine.openvino.mlp import mlp
from specpipe.engine.openvino.network import cache_input, indices, paged_inputs
from specpipe.engine.openvino.ops import Builder, integer, ints
from specpipe.engine.openvino.weights import Weights, plain

_MODULE = "eagle3."
_LAYER = "transformer.layers.0."
_TABLE, _OUTPUT, _IDS = "transformer.vocab_embedding.weight", "lm_head.weight", "token_ids"


def build_layer_drafter(
    model: ModelConfig, drafter: Eagle3Drafter, weights: Weights, *, exact: bool
) -> ov.Model:
    """Return the graph of the checkpoint's drafter; raises ConfigError if a tensor is missing."""
    net, own = drafter.net, _own(weights)
    build = Builder(net, own, "none", net.max_position_embeddings)
    inputs = _inputs(net)
    table = own if _TABLE in own.tensors else weights
    embedded = op.gather(plain(*table.raw(_TABLE)), inputs["tokens"], integer(0))
    out = _layer(build, drafter, embedded, inputs)
    picked = op.unsqueeze(op.gather(out, inputs["rows"], integer(0)), ints(0))
    normed = op.squeeze(build.norm(picked, "transformer.ln_f"), ints(0))
    output = own if _OUTPUT in own.tensors else weights
    head = plain(*output.raw(_OUTPUT)) if exact else _rounded(output, drafter)
    ids = own.raw(_IDS)[0].astype(np.int64) if _IDS in own.tensors else slice(None)
    found = likeliest(op.matmul(normed, head, False, True), ids)
    tokens = found.pop("tokens")
    state = normed if drafter.norm_output else op.squeeze(picked, ints(0))
    outputs = {"predicted": tokens, **found, "states": state.output(0)}
    return named_model("specpipe eagle3", outputs, inputs)


def _own(weights: Weights) -> Weights:
    """Return the drafter's tensors, under the names of a target's."""
    return Weights(
        {n.removeprefix(_MODULE): t for n, t in weights.tensors.items() if n.startswith(_MODULE)}
    )


def _inputs(net: ModelConfig) -> dict[str, ov.Node]:
    shape = [1, -1, 1, net.head_size]
    return {
        "tokens": indices("tokens"),
        "rows": indices("rows"),
        "features": op.parameter([-1, net.hidden_size], Type.f32, name="features"),
        **{name: op.parameter(shape, Type.f32, name=name) for name in ("cos", "sin")},
        **paged_inputs(batch_invariant=False),
        **{name: cache_input(name) for name in ("key_cache.0", "value_cache.0")},
    }


def _layer(
    build: Builder, drafter: Eagle3Drafter, embedded: ov.Node, inputs: dict[str, ov.Node]
) -> ov.Node:
    """Return [T, D]: the layer's output, before the final norm."""
    features = op.unsqueeze(inputs["features"], ints(0))
    token = build.norm(op.unsqueeze(embedded, ints(0)), f"{_LAYER}input_layernorm")
    hidden = build.norm(features, f"{_LAYER}hidden_norm")
    cache = [inputs["key_cache.0"], inputs["value_cache.0"]]
    attended, _ = attention(build, 0, op.concat([token, hidden], -1), cache, inputs)
    x = op.add(hidden if drafter.norm_before_residual else features, attended)
    x = op.add(x, mlp(build, f"{_LAYER}mlp.", build.norm(x, f"{_LAYER}post_layernorm")))
    return op.squeeze(x, ints(0))


def _rounded(output: Weights, drafter: Eagle3Drafter) -> ov.Node:
    return output_rows(output, _OUTPUT, slice(drafter.draft_vocab_size))
