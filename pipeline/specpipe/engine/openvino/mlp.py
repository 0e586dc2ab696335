"""The part of a layer after attention: one MLP, or a mixture of experts."""

import numpy as np
import openvino as ov
from openvino import opset13 as op

from specpipe.core.model import Experts
from specpipe.engine.openvino.ops import ACTIVATIONS, FUSED, Builder, integer, ints
from specpipe.engine.openvino.weights import Array


def mlp(build: Builder, at: str, x: ov.Node) -> ov.Node:
    """Return [1, M, D] of [1, M, D]: the part `at` of a layer."""
    moe = build.model.moe
    if moe is None:
        return _feed_forward(build, at, x, bias=build.model.mlp_bias)
    routed = _experts(build, moe, at, x)
    if not build.model.moe_shared_expert_intermediate_size:
        return routed
    shared = _feed_forward(build, f"{at}shared_expert.", x, bias=False)
    if build.model.arithmetic.shared_expert_gate:
        gate = op.sigmoid(build.linear(x, f"{at}shared_expert_gate.weight"))
        shared = op.multiply(gate, shared)
    return op.add(routed, shared)


def _feed_forward(build: Builder, at: str, x: ov.Node, *, bias: bool) -> ov.Node:
    def linear(x: ov.Node, name: str) -> ov.Node:
        out = build.linear(x, f"{at}{name}.weight")
        return build.add_bias(out, f"{at}{name}.bias") if bias else out

    model, act = build.model, ACTIVATIONS[build.model.hidden_act]
    inner = linear(x, "fc")
    if model.hidden_act in FUSED:
        up, gate = op.split(inner, integer(-1), 2).outputs()
        inner = op.multiply(act(gate), up)
    elif model.arithmetic.gated_mlp:
        gate = act(inner)  # HF's gate_proj
        inner = op.multiply(gate, linear(x, "gate"))  # HF's up_proj
    else:
        inner = act(inner)
    return linear(inner, "proj")


def _experts(build: Builder, moe: Experts, at: str, x: ov.Node) -> ov.Node:
    """Evaluate every expert on every token, as one wide MLP; gates zero the experts not chosen.

    The result is exact. The cost is that of all experts, since the CPU reads all their weights.
    """
    inner = build.linear(x, f"{at}fc.weight", _rows_together)  # [1, M, E * 2I]
    inner = op.reshape(inner, ints(-1, moe.num_experts, 2 * build.model.expert_size), False)
    up, gate = op.split(inner, integer(-1), 2).outputs()
    inner = op.multiply(ACTIVATIONS[build.model.hidden_act](gate), up)
    inner = build.rounded(
        inner, f"{at}proj.weight"
    )  # before the gates, which TensorRT-LLM applies last
    inner = op.multiply(inner, op.unsqueeze(_gates(build, moe, at, x), ints(2)))  # [M, E, I]
    inner = op.reshape(inner, ints(1, -1, moe.num_experts * build.model.expert_size), False)
    matrix = build.matrix(f"{at}proj.weight", _columns_together)
    return op.matmul(inner, matrix, False, True)


def _rows_together(weights: Array) -> Array:
    """Turn [E, 2 * I, D] into [E * 2 * I, D]."""
    return weights.reshape(-1, weights.shape[2])


def _columns_together(weights: Array) -> Array:
    """Turn [E, D, I] into [D, E * I], so that the product sums over the experts."""
    return np.ascontiguousarray(weights.swapaxes(0, 1)).reshape(weights.shape[1], -1)


def _gates(build: Builder, moe: Experts, at: str, x: ov.Node) -> ov.Node:
    """Return [M, E]: the weight of every expert, 0 for those that are not chosen."""
    router = build.plain_linear(op.squeeze(x, ints(0)), f"{at}router.weight")
    chances = op.softmax(router, -1)
    best = op.topk(chances, integer(moe.top_k), -1, "max", "value")
    chosen = best.output(0)
    if moe.normalization_mode:
        chosen = op.divide(chosen, op.reduce_sum(chosen, ints(-1), True)).output(0)
    zeros = op.multiply(chances, op.constant(0.0, ov.Type.f32))
    return op.scatter_elements_update(zeros, best.output(1), chosen, integer(-1))
