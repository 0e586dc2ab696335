"""A network definition whose layers compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from upstream_check import enums, kernels
from upstream_check.enums import TORCH, DataType, LayerType
from upstream_check.tensors import Compute, ITensor, Layer

Feed = Mapping[str, Any]  # the name of a network's input -> its value, or a function that makes it
Outputs = int | Callable[["Plugin"], int]
ARRAYS: dict[int, Any] = {}  # address -> array of a constant; `world` fills it
PLUGINS: dict[str, tuple[Outputs, Compute]] = {}  # name -> number of outputs, and the function


class Plugin:
    """A plugin that was asked for, with its fields."""

    def __init__(self, kind: str, fields: Sequence[Any]) -> None:
        self.plugin_type = self.name = kind
        self.fields = {field.name: field.data for field in fields}


class INetworkDefinition:
    """TensorRT's network; `feed` has the values of its inputs."""

    feed: Feed | None = None

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.inputs: dict[str, ITensor] = {}
        self.marked: list[ITensor] = []
        self.name = "network"

    def get_flag(self, flag: object) -> bool:
        """Tell that the network is strongly typed."""
        return True

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        """The number of inputs."""
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return len(self.marked)

    def get_layer(self, i: int) -> Layer:
        """Return a layer."""
        return self.layers[i]

    def get_output(self, i: int) -> ITensor:
        """Return an output."""
        return self.marked[i]

    def mark_output(self, tensor: ITensor) -> None:
        """Make a tensor an output."""
        self.marked.append(tensor)

    def add_input(self, name: str, dtype: DataType, shape: Sequence[int]) -> ITensor:
        """Return an input with the value that is fed."""
        assert self.feed is not None
        data = self.feed[name]
        data = (data(dtype, tuple(shape)) if callable(data) else data).to(TORCH[dtype])
        fits = len(shape) == data.dim() and all(
            want in (-1, have) for want, have in zip(shape, data.shape, strict=False)
        )
        assert fits, f"input {name} is declared {tuple(shape)}, fed with {tuple(data.shape)}"
        self.inputs[name] = ITensor(name, data=data, dtype=dtype)
        return self.inputs[name]

    def add_layer(
        self, kind: Any, inputs: Sequence[Any], count: int, compute: Compute, **own: Any
    ) -> Layer:
        """Return a new layer; not of TensorRT's interface."""
        layer = Layer(kind, inputs, count, compute, **own)
        self.layers.append(layer)
        return layer

    def add_constant(self, dims: Sequence[int], weights: Any) -> Layer:
        array = ARRAYS[weights.pointer]
        return self.add_layer(
            LayerType.CONSTANT, [], 1, lambda layer: _tensor(array).reshape(list(dims)),
            weights=weights,
        )  # fmt: skip

    def add_elementwise(self, a: ITensor, b: ITensor, op: Any) -> Layer:
        return self.add_layer(LayerType.ELEMENTWISE, [a, b], 1, kernels.elementwise, op=op)

    def add_unary(self, a: ITensor, op: Any) -> Layer:
        return self.add_layer(LayerType.UNARY, [a], 1, kernels.unary, op=op)

    def add_activation(self, a: ITensor, op: Any) -> Layer:
        kind = LayerType.ACTIVATION
        return self.add_layer(kind, [a], 1, kernels.activation, op=op, alpha=0.0, beta=0.0)

    def add_shuffle(self, a: ITensor) -> Layer:
        return self.add_layer(
            LayerType.SHUFFLE, [a], 1, kernels.shuffle, first_transpose=None,
            second_transpose=None, reshape_dims=None, zero_is_placeholder=True,
        )  # fmt: skip

    def add_slice(self, a: ITensor, start: Any, shape: Any, stride: Any) -> Layer:
        kind = LayerType.SLICE
        own = {"start": start, "shape_": shape, "stride": stride, "mode": None}
        return self.add_layer(kind, [a], 1, kernels.slices, **own)

    def add_concatenation(self, tensors: Sequence[ITensor]) -> Layer:
        return self.add_layer(LayerType.CONCATENATION, tensors, 1, kernels.concatenation, axis=0)

    def add_gather(self, a: ITensor, index: ITensor, axis: int) -> Layer:
        mode = enums.GatherMode.DEFAULT
        return self.add_layer(LayerType.GATHER, [a, index], 1, kernels.gather, axis=axis, mode=mode)

    def add_gather_v2(self, a: ITensor, index: ITensor, mode: Any) -> Layer:
        own = {"axis": 0, "mode": mode, "num_elementwise_dims": 0}
        return self.add_layer(LayerType.GATHER, [a, index], 1, kernels.gather, **own)

    def add_scatter(self, a: ITensor, index: ITensor, updates: ITensor, mode: Any) -> Layer:
        inputs = [a, index, updates]
        return self.add_layer(LayerType.SCATTER, inputs, 1, kernels.scatter, mode=mode, axis=0)

    def add_shape(self, a: ITensor) -> Layer:
        return self.add_layer(LayerType.SHAPE, [a], 1, lambda layer, x: torch.tensor(x.shape))

    def add_matrix_multiply(self, a: ITensor, op0: Any, b: ITensor, op1: Any) -> Layer:
        kind = LayerType.MATRIX_MULTIPLY
        return self.add_layer(kind, [a, b], 1, kernels.matmul, op0=op0, op1=op1)

    def add_softmax(self, a: ITensor) -> Layer:
        return self.add_layer(LayerType.SOFTMAX, [a], 1, kernels.softmax, axes=0)

    def add_reduce(self, a: ITensor, op: Any, axes: int, keep_dims: bool) -> Layer:
        own = {"op": op, "axes": axes, "keep": keep_dims}
        return self.add_layer(LayerType.REDUCE, [a], 1, kernels.reduce, **own)

    def add_cast(self, a: ITensor, dtype: DataType) -> Layer:
        return self.add_layer(LayerType.CAST, [a], 1, lambda layer, x: x.to(TORCH[dtype]))

    def add_identity(self, a: ITensor) -> Layer:
        return self.add_layer(LayerType.IDENTITY, [a], 1, lambda layer, x: x)

    def add_select(self, condition: ITensor, a: ITensor, b: ITensor) -> Layer:
        return self.add_layer(LayerType.SELECT, [condition, a, b], 1, kernels.selection)

    def add_normalization(self, x: ITensor, scale: ITensor, bias: ITensor, axes: int) -> Layer:
        own = {"axes": axes, "epsilon": 1e-5, "num_groups": 1, "compute_precision": None}
        kind = LayerType.NORMALIZATION
        return self.add_layer(kind, [x, scale, bias], 1, kernels.normalization, **own)

    def add_fill(self, shape: Any, op: Any, output_type: DataType | None = None) -> Layer:
        kind = output_type or DataType.FLOAT
        own = {"shape_": shape, "op": op, "output_type": kind, "alpha": 0.0, "beta": 1.0}
        return self.add_layer(LayerType.FILL, [], 1, kernels.fill, **own)

    def add_topk(self, a: ITensor, op: Any, k: int, axes: int) -> Layer:
        return self.add_layer(LayerType.TOPK, [a], 2, kernels.topk, op=op, k=k, axes=axes)

    def add_non_zero(self, a: ITensor) -> Layer:
        return self.add_layer(LayerType.NON_ZERO, [a], 1, lambda layer, x: torch.nonzero(x).T)

    def add_assertion(self, condition: ITensor, message: str) -> Layer:
        assert bool(condition.data.all()), message
        return self.add_layer(LayerType.ASSERTION, [condition], 0, lambda layer, x: ())

    def add_einsum(self, tensors: Sequence[ITensor], equation: str) -> Layer:
        def compute(layer: Layer, *parts: torch.Tensor) -> torch.Tensor:
            return torch.einsum(equation, *parts)

        return self.add_layer(LayerType.EINSUM, tensors, 1, compute)

    def add_quantize(self, a: ITensor, scale: ITensor, dtype: Any = DataType.INT8) -> Layer:
        own = {"axis": 0, "output_kind": dtype}
        return self.add_layer(LayerType.QUANTIZE, [a, scale], 1, kernels.quantization, **own)

    def add_dequantize(self, a: ITensor, scale: ITensor, dtype: Any = DataType.FLOAT) -> Layer:
        own = {"axis": 0, "output_kind": dtype}
        return self.add_layer(LayerType.DEQUANTIZE, [a, scale], 1, kernels.dequantization, **own)

    def add_plugin_v2(self, inputs: Sequence[ITensor], plugin: Plugin) -> Layer:
        if plugin.plugin_type not in PLUGINS:
            raise NotImplementedError(f"plugin {plugin.plugin_type}")
        outputs, function = PLUGINS[plugin.plugin_type]
        count = outputs(plugin) if callable(outputs) else outputs
        layer = self.add_layer(
            LayerType.PLUGIN_V2, inputs, count, lambda layer, *data: function(plugin, *data),
            plugin=plugin,
        )  # fmt: skip
        return layer

    def add_plugin_v3(self, inputs: Sequence[ITensor], shapes: object, plugin: Plugin) -> Layer:
        layer = self.add_plugin_v2(inputs, plugin)
        layer.type = LayerType.PLUGIN_V3
        return layer


def _tensor(array: Any) -> torch.Tensor:
    from tensorrt_llm._utils import numpy_to_torch

    if not array.flags["C_CONTIGUOUS"] or not array.flags["WRITEABLE"]:
        array = np.array(array)
    made: torch.Tensor = (
        torch.from_numpy(array) if array.dtype == np.bool_ else numpy_to_torch(array)
    )
    return made
