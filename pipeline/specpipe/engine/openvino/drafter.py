"""The graph of a ReDrafter: extends every draft path by one token (2403.09919, section 3).

    hidden [N, D], states [N, D], last [N] int32
 -> tokens [N, WIDTH] int32, likeliest first;  probs [N, WIDTH];  next_states [N, D]

A draft path is represented by its last token and by what its parent's state adds to its own state:
U s. That is zero for the root, the token that the target has chosen. The state is
silu(W e + U s + b), as in TensorRT-LLM's engines (`_beam_search_candidates` of
tensorrt_llm/models/redrafter/redrafter_helper.py) and in Apple's code.

The layers are quantized, and the output layer is cut, as for Medusa heads (`heads.py`). A drafter
without an output layer uses the target's.
"""

import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.core.drafters import RecurrentDrafter
from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.heads import drafted_rows, likeliest, named_model, output_rows
from specpipe.engine.openvino.weights import Weights, int8, plain


def build_drafter(
    model: ModelConfig, net: RecurrentDrafter, weights: Weights, vocabulary: int = 0
) -> ov.Model:
    """Return the graph of the checkpoint's drafter.

    It drafts only `vocabulary` tokens (0: all), see `drafted_rows`. Raises ConfigError if a tensor
    is missing, or if the token map is damaged.
    """
    width = model.hidden_size
    inputs = {
        "hidden": op.parameter([-1, width], Type.f32, name="hidden"),
        "states": op.parameter([-1, width], Type.f32, name="states"),
        "last": op.parameter([-1], Type.i32, name="last"),
    }
    table = plain(*weights.raw("transformer.vocab_embedding.weight"))
    embedded = op.gather(table, inputs["last"], op.constant(0))
    states = _state(net, weights, embedded, inputs["states"])
    x = op.concat([inputs["hidden"], states], 1)
    if "drafter.input_proj.weight" in weights.tensors:
        x = _linear(weights, "input_proj", x)
    for layer in range(net.num_layers):
        x = op.add(x, op.swish(_linear(weights, f"layers.{layer}.linear", x)))
    own = "drafter.lm_head.weight"
    name = own if own in weights.tensors else "lm_head.weight"
    rows = drafted_rows(weights, "drafter", vocabulary, model.vocab_size)
    logits = op.matmul(x, output_rows(weights, name, rows), False, True)
    carried = _carried(net, weights, states)
    outputs = likeliest(logits, rows) | {"next_states": carried.output(0)}
    return named_model("specpipe drafter", outputs, inputs)


def _state(net: RecurrentDrafter, weights: Weights, embedded: ov.Node, carried: ov.Node) -> ov.Node:
    """Return the state of every path, from its last token and what its parent's state adds."""
    if not net.is_rnn:
        return op.add(embedded, carried)
    read = op.matmul(embedded, int8(*weights.raw("drafter.rnn_w.weight")), False, True)
    bias = plain(*weights.raw("drafter.rnn_u.bias"))
    return op.swish(op.add(op.add(read, carried), bias))


def _carried(net: RecurrentDrafter, weights: Weights, states: ov.Node) -> ov.Node:
    """Return what the states add to those of the next tokens."""
    if not net.is_rnn:
        return states
    return op.matmul(states, int8(*weights.raw("drafter.rnn_u.weight")), False, True)


def _linear(weights: Weights, name: str, x: ov.Node) -> ov.Node:
    weight, bias = (weights.raw(f"drafter.{name}.{part}") for part in ("weight", "bias"))
    return op.add(op.matmul(x, int8(*weight), False, True), plain(*bias))
