"""The graph of Medusa heads: maps a hidden state to the likeliest draft tokens of every head.

    hidden [B, D]  ->  tokens [B, K, WIDTH] int32, likeliest first;  probs [B, K, WIDTH]

Each of the K heads has residual blocks x + silu(W x + b) and an output layer (2401.10774, section
2.1.1). The heads share the target's output layer, or each has its own. Draft tokens need not be
exact, so all layers are kept in 8 bits at any precision of the engine. The output layer is most of
the work. It can be cut to the frequent tokens, as in FR-Spec (2502.14856): those that the token map
of the drafter's training has first. Without a map these are the first of the vocabulary, whose ids
follow the order of merges.
"""

from collections.abc import Mapping

import numpy as np
import openvino as ov
from openvino import Type
from openvino import opset13 as op

from specpipe.core.contracts import Ints
from specpipe.core.drafters import TOKEN_MAP
from specpipe.core.errors import ConfigError
from specpipe.core.model import ModelConfig
from specpipe.core.trees import WIDTH
from specpipe.engine.openvino.network import name_by_order
from specpipe.engine.openvino.weights import Weights, int8, plain

Rows = slice | Ints


def build_heads(model: ModelConfig, weights: Weights, vocabulary: int = 0) -> ov.Model:
    """Return the graph of the checkpoint's heads.

    They draft only `vocabulary` tokens (0: all), see `drafted_rows`. Raises ConfigError if a tensor
    is missing, or if the token map is damaged.
    """
    hidden = op.parameter([-1, model.hidden_size], Type.f32, name="hidden")
    heads = range(model.num_medusa_heads)
    rows = [_blocks(hidden, model, weights, k) for k in heads]
    drafted = drafted_rows(weights, "medusa_heads", vocabulary, model.vocab_size)
    logits = _output_layers(rows, weights, drafted)
    return named_model("specpipe heads", likeliest(logits, drafted), {"hidden": hidden})


def drafted_rows(weights: Weights, module: str, count: int, vocab_size: int) -> Rows:
    """Return which rows of an output layer are kept to draft `count` tokens, 0: all.

    They are the first of the module's token map, or of the vocabulary if there is no map. Raises
    ConfigError for a map with a token twice, one beyond the vocabulary, or fewer than WIDTH tokens.
    """
    name = f"{module}.{TOKEN_MAP}"
    if not count or name not in weights.tensors:
        return slice(count or vocab_size)
    ids = weights.raw(name)[0].astype(np.int64)
    known = np.unique(ids)
    if len(known) < max(len(ids), WIDTH) or known[0] < 0 or known[-1] >= vocab_size:
        raise ConfigError(
            f"{name} has a token twice, one beyond the vocabulary, or fewer than {WIDTH}",
            hint="copy the drafter again, or train it again",
        )
    return ids[:count]


def likeliest(logits: ov.Node, rows: Rows) -> dict[str, ov.Output]:
    """Return the WIDTH likeliest tokens of all logits [.., V] and their probabilities.

    `rows` are those of the vocabulary that the logits are of.
    """
    best = op.topk(logits, op.constant(WIDTH), -1, "max", "value", Type.i32)
    total = op.reduce_sum(op.exp(op.subtract(logits, _first(best))), op.constant([-1]), True)
    probs = op.divide(op.exp(op.subtract(best.output(0), _first(best))), total)
    tokens = best.output(1)
    if not isinstance(rows, slice):
        tokens = op.gather(op.constant(rows.astype(np.int32)), tokens, op.constant(0)).output(0)
    return {"tokens": tokens, "probs": probs.output(0)}


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
        turned = op.matmul(x, int8(*weights.raw(f"{at}weight")), False, True)
        x = op.add(x, op.swish(op.add(turned, plain(*weights.raw(f"{at}bias")))))
    return x


def _output_layers(rows: list[ov.Node], weights: Weights, drafted: Rows) -> ov.Node:
    """Return logits [B, K, drafted tokens]; heads without output layers share the target's."""
    own = [f"medusa_heads.{k}.lm_head.weight" for k in range(len(rows))]
    between = op.constant([1])
    if own[0] in weights.tensors:
        layers = [output_rows(weights, name, drafted) for name in own]
        logits = [op.matmul(x, w, False, True) for x, w in zip(rows, layers, strict=True)]
        return op.concat([op.unsqueeze(one, between) for one in logits], 1)
    together = op.concat([op.unsqueeze(x, between) for x in rows], 1)
    return op.matmul(together, output_rows(weights, "lm_head.weight", drafted), False, True)


def output_rows(weights: Weights, name: str, rows: Rows) -> ov.Node:
    """Return rows of an output layer in 8 bits."""
    array, dtype = weights.raw(name)
    return int8(array[rows], dtype)


def _first(best: ov.Node) -> ov.Node:
    """Return [.., 1]: the largest logits."""
    return op.gather(best.output(0), op.constant([0]), op.constant(-1))
