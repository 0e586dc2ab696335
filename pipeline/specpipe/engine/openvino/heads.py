"""The graph of Medusa heads: maps a hidden state to the likeliest draft tokens of every head.

    hidden [B, D]  ->  tokens [B, K, WIDTH] int32, likeliest first;  probs [B, K, WIDTH]

Each of the K heads has residual blocks x + silu(W x + b) and an output layer (2401.10774, section
2.1.1). The heads share the target's output layer, or each has its own. Draft tokens need not be
exact, and the output layer is nearly all of the work. So it is kept in 8 bits at any precision of
the engine, and can be cut to the first tokens of the vocabulary. Where token ids follow the order
of merges, these are the frequent tokens. The idea is that of FR-Spec (2502.14856).
"""

from collections.abc import Mapping

import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.core.model import ModelConfig
from specpipe.core.trees import WIDTH
from specpipe.engine.openvino.network import name_by_order
from specpipe.engine.openvino.weights import Weights, int8, plain


def build_heads(model: ModelConfig, weights: Weights, vocabulary: int = 0) -> ov.Model:
    """Return the graph of the checkpoint's heads.

    They draft only the first `vocabulary` tokens (0: all). Raises ConfigError if a tensor is
    missing.
    """
    hidden = op.parameter([-1, model.hidden_size], Type.f32, name="hidden")
    heads = range(model.num_medusa_heads)
    rows = [_blocks(hidden, model, weights, k) for k in heads]
    logits = _output_layers(rows, weights, vocabulary or model.vocab_size)
    return named_model("specpipe heads", likeliest(logits), {"hidden": hidden})


def likeliest(logits: ov.Node) -> dict[str, ov.Output]:
    """Return the WIDTH likeliest tokens of all logits [.., V] and their probabilities."""
    best = op.topk(logits, op.constant(WIDTH), -1, "max", "value", Type.i32)
    total = op.reduce_sum(op.exp(op.subtract(logits, _first(best))), op.constant([-1]), True)
    probs = op.divide(op.exp(op.subtract(best.output(0), _first(best))), total)
    return {"tokens": best.output(1), "probs": probs.output(0)}


def named_model(
    title: str, outputs: Mapping[str, ov.Output], inputs: Mapping[str, ov.Node]
) -> ov.Model:
    """Return a graph whose inputs and outputs have these names."""
    for name, node in inputs.items():
        node.output(0).get_tensor().set_names({name})
    for name, port in outputs.items():
        port.get_tensor().set_names({name})
    network = ov.Model(list(map(op.result, outputs.values())), list(inputs.values()), title)
    name_by_order(network)
    return network


def _blocks(x: ov.Node, model: ModelConfig, weights: Weights, head: int) -> ov.Node:
    """Return [B, D]: the hidden states after a head's residual blocks."""
    for layer in range(model.num_medusa_layers):
        at = f"medusa_heads.{head}.medusa_layers.{layer}.linear."
        turned = op.matmul(x, plain(*weights.raw(f"{at}weight")), False, True)
        x = op.add(x, op.swish(op.add(turned, plain(*weights.raw(f"{at}bias")))))
    return x


def _output_layers(rows: list[ov.Node], weights: Weights, vocabulary: int) -> ov.Node:
    """Return logits [B, K, vocabulary]; heads without output layers share the target's."""
    own = [f"medusa_heads.{k}.lm_head.weight" for k in range(len(rows))]
    between = op.constant([1])
    if own[0] in weights.tensors:
        layers = [output_rows(weights, name, vocabulary) for name in own]
        logits = [op.matmul(x, w, False, True) for x, w in zip(rows, layers, strict=True)]
        return op.concat([op.unsqueeze(one, between) for one in logits], 1)
    together = op.concat([op.unsqueeze(x, between) for x in rows], 1)
    return op.matmul(together, output_rows(weights, "lm_head.weight", vocabulary), False, True)


def output_rows(weights: Weights, name: str, vocabulary: int) -> ov.Node:
    """Return the first rows of an output layer in 8 bits."""
    array, dtype = weights.raw(name)
    return int8(array[:vocabulary], dtype)


def _first(best: ov.Node) -> ov.Node:
    """Return [.., 1]: the largest logits."""
    return op.gather(best.output(0), op.constant([0]), op.constant(-1))
