"""Tensors and layers that compute when a shape or a value is asked for."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from upstream_check.enums import FROM_TORCH, DataType, TensorLocation

Compute = Callable[..., Any]  # (layer, values of its inputs...) -> values of its outputs


class Dims(tuple[int, ...]):
    """A shape."""

    def __new__(cls, dims: Iterable[int] = ()) -> "Dims":
        return super().__new__(cls, (int(d) for d in dims))

    @property
    def nbDims(self) -> int:  # noqa: N802  # TensorRT's name
        """The number of dimensions."""
        return len(self)


class ITensor:
    """A tensor of a network, with its value."""

    def __init__(
        self,
        name: str,
        compute: Callable[[], None] | None = None,
        data: torch.Tensor | None = None,
        dtype: DataType | None = None,
    ) -> None:
        self.name = name
        self.value, self._compute, self._dtype = data, compute, dtype
        self.location = TensorLocation.DEVICE
        self.is_shape_tensor = False
        self.allowed_formats = 0

    @property
    def data(self) -> torch.Tensor:
        """The value, computed when it is asked for."""
        if self.value is None:
            assert self._compute is not None
            self._compute()
        assert self.value is not None
        return self.value

    @property
    def shape(self) -> Dims:
        """The shape of the value."""
        return Dims(self.data.shape)

    @shape.setter
    def shape(self, value: Sequence[int]) -> None:
        have = tuple(self.data.shape)
        fits = all(want in (-1, there) for want, there in zip(value, have, strict=False))
        if len(value) != len(have) or not fits:
            raise AssertionError(f"input {self.name}: shape {tuple(value)}, fed with {have}")

    @property
    def dtype(self) -> DataType:
        """The declared type, or that of the value."""
        return self._dtype if self._dtype is not None else FROM_TORCH[self.data.dtype]

    @dtype.setter
    def dtype(self, value: DataType) -> None:
        self._dtype = value

    def set_dimension_name(self, *_: object) -> None:
        """Names of dimensions have no effect."""

    def set_dynamic_range(self, *_: object) -> bool:
        """Ranges have no effect."""
        return True

    def __hash__(self) -> int:
        return id(self)


class Layer:
    """Inputs, attributes that may be set after it was made, and the function of all outputs."""

    def __init__(
        self,
        kind: Any,
        inputs: Sequence[ITensor | None],
        outputs: int,
        compute: Compute,
        **attributes: Any,
    ) -> None:
        self.type = kind
        self.name = f"(unnamed {kind.name} {id(self)})"
        self.inputs = list(inputs)
        self.metadata, self.precision, self.op = "", None, None
        self.__dict__.update(attributes)
        self._compute, self._is_done = compute, False
        self.outputs = [ITensor(f"{self.name}_out{i}", self.run) for i in range(outputs)]

    def run(self) -> None:
        """Compute the outputs, once."""
        if self._is_done:
            return
        found = self._compute(self, *[i.data if i is not None else None for i in self.inputs])
        results = found if isinstance(found, tuple | list) else [found]
        assert len(results) == len(self.outputs), (self.type, len(results), len(self.outputs))
        for output, result in zip(self.outputs, results, strict=True):
            output.value = result
        self._is_done = True

    @property
    def num_inputs(self) -> int:
        """The number of inputs."""
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        """The number of outputs."""
        return len(self.outputs)

    def get_input(self, index: int) -> ITensor | None:
        """Return an input."""
        return self.inputs[index]

    def get_output(self, index: int) -> ITensor:
        """Return an output."""
        return self.outputs[index]

    def set_input(self, index: int, tensor: ITensor) -> None:
        """Replace an input, or add one."""
        assert not self._is_done
        while len(self.inputs) <= index:
            self.inputs.append(None)
        self.inputs[index] = tensor

    def set_output_type(self, index: int, dtype: DataType) -> None:
        """Types follow from the values."""
