"""Building blocks of a graph: weights as nodes, norms, activations, constants."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openvino as ov
from openvino import opset13 as op
from openvino.utils.node_factory import NodeFactory

from specpipe.core.model import ModelConfig
from specpipe.engine.openvino.weights import Array, Weights, int4, int8, plain, rounded

Reorder = Callable[[Array], Array]
Activation = Callable[[ov.Node], ov.Node]


@dataclass(frozen=True)
class Builder:
    """Model, weights and precision, and the nodes that every layer is built from."""

    model: ModelConfig
    weights: Weights
    quantization: str
    max_seq_len: int

    def linear(self, x: ov.Node, name: str, order: Reorder | None = None) -> ov.Node:
        """Multiply `x` with the transposed weights `name`; `order` reorders the weights first."""
        return op.matmul(self.rounded(x, name, order), self.matrix(name, order), False, True)

    def rounded(self, x: ov.Node, name: str, order: Reorder | None = None) -> ov.Node:
        """Round the inputs of a layer that was quantized for a GPU, as the GPU does."""
        how = self.weights.rounding(name)
        if how is None:
            return x
        scale = how.scale
        if scale is not None and order is not None:  # reordered columns need reordered scales
            rows = self.weights.raw(name)[0].shape[0]
            scale = order(np.broadcast_to(scale, (rows, len(scale))))[0]
        return rounded(x, how, scale)

    def add_bias(self, x: ov.Node, name: str, order: Reorder | None = None) -> ov.Node:
        """Add the bias `name`, reordered like a column of weights, to [1, M, n]."""
        column = self.weights.float32(name)[:, None]
        column = column if order is None else order(column)
        return op.add(x, op.constant(column.reshape(1, 1, -1)))

    def matrix(self, name: str, order: Reorder | None = None) -> ov.Node:
        """Return weights [n, k] in the engine's precision."""
        array, dtype = self.weights.raw(name)
        if order is not None:
            array = order(array)
        return {"none": plain, "int8": int8, "int4": int4}[self.quantization](array, dtype)

    def plain_linear(self, x: ov.Node, name: str) -> ov.Node:
        """Multiply with weights that are never quantized."""
        return op.matmul(x, plain(*self.weights.raw(name)), False, True)

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        """Apply the model's norm, LayerNorm or RMSNorm, to the last dimension.

        Shapes as in `rms_norm`.
        """
        if self.model.arithmetic.layer_norm:
            return self._layer_norm(x, name)
        return self.rms_norm(x, name)

    def rms_norm(self, x: ov.Node, name: str) -> ov.Node:
        """RMSNorm over the last dimension, of [1, n, D] or of [1, n, heads, h].

        The weights are [D], [h] or [heads, h].
        """
        one = (1,) * len(_port(x).get_partial_shape())
        mean = op.reduce_mean(op.power(x, scalar(2, one)), ints(-1), True)
        root = op.sqrt(op.add(mean, scalar(self.model.norm_epsilon, one)))
        normed = op.multiply(x, op.divide(scalar(1, one), root))
        return op.multiply(self._of_norm(f"{name}.weight", len(one)), normed)

    def _layer_norm(self, x: ov.Node, name: str) -> ov.Node:
        epsilon, rank = self.model.norm_epsilon, len(_port(x).get_partial_shape())
        normed = op.mvn(x, op.constant(np.array([-1], np.int64)), True, epsilon, "inside_sqrt")
        weighed = op.multiply(normed, self._of_norm(f"{name}.weight", rank))
        if not self.model.arithmetic.norm_bias:
            return weighed
        return op.add(weighed, self._of_norm(f"{name}.bias", rank))

    def _of_norm(self, name: str, rank: int) -> ov.Node:
        """Return the weights or the bias of a norm, with leading dimensions of 1 up to `rank`."""
        values = self.weights.float32(name)
        return op.constant(values.reshape((1,) * (rank - values.ndim) + values.shape))


def swish(x: ov.Node) -> ov.Node:
    """Return x * sigmoid(x)."""
    # The helper in opset13 adds a beta input, which keeps the plugin from fusing the MLP.
    return NodeFactory("opset4").create("Swish", [_port(x)], {})


def _port(x: ov.Node | ov.Output) -> ov.Output:
    return x.output(0) if isinstance(x, ov.Node) else x


def _gelu(x: ov.Node) -> ov.Node:
    return op.gelu(x, "erf")


def _gelu_tanh(x: ov.Node) -> ov.Node:
    return op.gelu(x, "tanh")


ACTIVATIONS: dict[str, Activation] = {  # TensorRT-LLM's `hidden_act`, computed as in transformers
    "silu": swish,
    "swiglu": swish,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "geglu": _gelu_tanh,
}
FUSED = ("swiglu", "geglu")  # one matrix [2 * I, D]: the gated half, then the gate


def softcap(x: ov.Node, cap: float | None) -> ov.Node:
    """Return cap * tanh(x / cap): values limited smoothly to (-cap, cap); None: unchanged."""
    if cap is None:
        return x
    return op.multiply(op.tanh(op.divide(x, scalar(cap, ()))), scalar(cap, ()))


def scaled(x: ov.Node, scale: float) -> ov.Node:
    """Return [1, n, D] times a number; of 1: unchanged."""
    return x if scale == 1 else op.multiply(x, scalar(scale, (1, 1, 1)))


def ints(*values: int) -> ov.Node:
    """Return a constant list of indices."""
    return op.constant(np.array(values, np.int64))


def integer(value: int) -> ov.Node:
    """Return a constant index."""
    return op.constant(np.int64(value))


def scalar(value: float, shape: tuple[int, ...]) -> ov.Node:
    """Return a constant of one value."""
    return op.constant(np.full(shape, value, np.float32))
