"""What each kind of layer computes; every function takes the layer and the values of its inputs.

An operation that TensorRT would refuse in a strongly typed network is refused here too: operands of
two types or ranks, and places outside a tensor.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from upstream_check.enums import (
    TORCH,
    ActivationType,
    DataType,
    ElementWiseOperation,
    FillOperation,
    GatherMode,
    MatrixOperation,
    ReduceOperation,
    SampleMode,
    ScatterMode,
    TopKOperation,
    UnaryOperation,
)

Tensor = torch.Tensor
_E, _U, _A, _R = ElementWiseOperation, UnaryOperation, ActivationType, ReduceOperation
_ELEMENTWISE = {
    _E.SUM: torch.add, _E.PROD: torch.mul, _E.MAX: torch.maximum, _E.MIN: torch.minimum,
    _E.SUB: torch.sub, _E.POW: torch.pow, _E.AND: torch.logical_and, _E.OR: torch.logical_or,
    _E.XOR: torch.logical_xor, _E.EQUAL: torch.eq, _E.GREATER: torch.gt, _E.LESS: torch.lt,
}  # fmt: skip
_UNARY = {
    _U.EXP: torch.exp, _U.LOG: torch.log, _U.SQRT: torch.sqrt, _U.RECIP: torch.reciprocal,
    _U.ABS: torch.abs, _U.NEG: torch.neg, _U.SIN: torch.sin, _U.COS: torch.cos, _U.TAN: torch.tan,
    _U.CEIL: torch.ceil, _U.FLOOR: torch.floor, _U.ERF: torch.erf, _U.NOT: torch.logical_not,
    _U.SIGN: torch.sign, _U.ROUND: torch.round,
}  # fmt: skip


def axes_of(mask: int, rank: int) -> list[int]:
    """Return the axes of a bit mask."""
    return [axis for axis in range(rank) if mask >> axis & 1]


def require_alike(a: Tensor, b: Tensor) -> None:
    """Refuse operands of two types."""
    assert a.dtype == b.dtype, f"operands of two types: {a.dtype}, {b.dtype}"


def elementwise(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """Add, multiply, compare ..."""
    require_alike(a, b)
    assert a.dim() == b.dim(), f"operands of two ranks: {tuple(a.shape)}, {tuple(b.shape)}"
    if layer.op in (_E.DIV, _E.FLOOR_DIV):
        whole = "floor" if layer.op == _E.FLOOR_DIV else "trunc"
        exact = layer.op == _E.DIV and a.dtype.is_floating_point
        return (a / b if exact else torch.div(a, b, rounding_mode=whole)).to(a.dtype)
    found: Tensor = _ELEMENTWISE[layer.op](a, b)
    return found if layer.op in (_E.EQUAL, _E.GREATER, _E.LESS) else found.to(a.dtype)


def unary(layer: Any, a: Tensor) -> Tensor:
    """Apply a function of one variable, in float32."""
    wide = a.float() if a.dtype.is_floating_point else a
    return _UNARY[layer.op](wide).to(a.dtype)


def activation(layer: Any, a: Tensor) -> Tensor:
    """Apply an activation, in float32."""
    x, kind = a.float(), layer.op
    if kind == _A.CLIP:
        return x.clamp(layer.alpha, layer.beta).to(a.dtype)
    if kind == _A.SOFTPLUS:
        return (layer.alpha * torch.log1p(torch.exp(layer.beta * x))).to(a.dtype)
    if kind in (_A.GELU_ERF, _A.GELU_TANH):
        how = "tanh" if kind == _A.GELU_TANH else "none"
        return functional.gelu(x, approximate=how).to(a.dtype)
    simple = {_A.RELU: torch.relu, _A.SIGMOID: torch.sigmoid, _A.TANH: torch.tanh}
    return simple[kind](x).to(a.dtype)


def shuffle(layer: Any, a: Tensor, dims: Tensor | None = None) -> Tensor:
    """Transpose, reshape, transpose."""
    if layer.first_transpose is not None:
        a = a.permute(*layer.first_transpose)
    target = [int(d) for d in dims.tolist()] if dims is not None else layer.reshape_dims
    if target is not None:
        keeps = layer.zero_is_placeholder
        target = [a.shape[i] if d == 0 and keeps else int(d) for i, d in enumerate(target)]
        if a.numel() == 0:
            target = [0 if d == -1 else d for d in target]
        a = a.reshape(target)
    if layer.second_transpose is not None:
        a = a.permute(*layer.second_transpose)
    return a.contiguous()


def slices(
    layer: Any,
    a: Tensor,
    start: Tensor | None = None,
    size: Tensor | None = None,
    stride: Tensor | None = None,
    fill: Tensor | None = None,
) -> Tensor:
    """Take a part along every axis; outside there is an error, or a value."""

    def numbers(given: Tensor | None, own: Sequence[int]) -> list[int]:
        return [int(x) for x in (given.tolist() if given is not None else own)]

    starts, sizes = numbers(start, layer.start), numbers(size, layer.shape_)
    strides = numbers(stride, layer.stride)
    for axis, (first, count, step) in enumerate(zip(starts, sizes, strides, strict=True)):
        index = torch.arange(count) * step + first
        inside = (index >= 0) & (index < a.shape[axis])
        if layer.mode in (None, SampleMode.STRICT_BOUNDS):
            assert bool(inside.all()), f"slice {starts} {sizes} {strides} of {tuple(a.shape)}"
            a = a.index_select(axis, index)
        elif layer.mode == SampleMode.FILL:
            part = a.index_select(axis, index.clamp(0, a.shape[axis] - 1))
            view = [count if i == axis else 1 for i in range(a.dim())]
            value = fill if fill is not None else torch.zeros((), dtype=a.dtype)
            a = torch.where(inside.reshape(view), part, value.to(a.dtype))
        else:
            raise NotImplementedError(layer.mode)
    return a


def gather(layer: Any, a: Tensor, index: Tensor) -> Tensor:
    """Take rows, elements, or what a tensor of places names."""
    index, axis = index.long(), layer.axis
    if layer.mode == GatherMode.ELEMENT:
        return torch.gather(a, axis, torch.where(index < 0, index + a.shape[axis], index))
    if layer.mode == GatherMode.ND:
        return _gather_nd(a, index, layer.num_elementwise_dims)
    fits = bool(((index >= 0) & (index < a.shape[axis])).all())
    assert fits, f"gather out of bounds of {tuple(a.shape)} along {axis}"
    flat = a.index_select(axis, index.reshape(-1))
    return flat.reshape(*a.shape[:axis], *index.shape, *a.shape[axis + 1 :])


def _gather_nd(a: Tensor, index: Tensor, lead: int) -> Tensor:
    def take(values: Tensor, places: Tensor) -> Tensor:
        return values[tuple(places[..., i] for i in range(places.shape[-1]))]

    if lead == 0:
        return take(a, index)
    batches, count = a.shape[:lead], int(np.prod(a.shape[:lead]))
    if count == 0:
        rest = a.shape[lead + index.shape[-1] :]
        return torch.zeros(*batches, *index.shape[lead:-1], *rest, dtype=a.dtype)
    rows = a.reshape(count, *a.shape[lead:])
    places = index.reshape(count, *index.shape[lead:])
    out = torch.stack([take(x, at) for x, at in zip(rows, places, strict=True)])
    return out.reshape(*batches, *out.shape[1:])


def scatter(layer: Any, a: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """Write elements, or what a tensor of places names."""
    if layer.mode == ScatterMode.ELEMENT:
        return a.scatter(layer.axis, index.long(), updates)
    out = a.clone()
    out[tuple(index.long()[..., i] for i in range(index.shape[-1]))] = updates
    return out


def matmul(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, in float32."""
    require_alike(a, b)
    a = a.transpose(-1, -2) if layer.op0 == MatrixOperation.TRANSPOSE else a
    b = b.transpose(-1, -2) if layer.op1 == MatrixOperation.TRANSPOSE else b
    return (a.float() @ b.float()).to(a.dtype) if a.dtype.is_floating_point else a @ b


def softmax(layer: Any, a: Tensor) -> Tensor:
    """Return probabilities along one axis."""
    (axis,) = axes_of(layer.axes, a.dim())
    return torch.softmax(a.float(), axis).to(a.dtype)


def reduce(layer: Any, a: Tensor) -> Tensor:
    """Sum, average, or take the largest or smallest."""
    axes, keep = axes_of(layer.axes, a.dim()), layer.keep
    x = a.float() if a.dtype.is_floating_point else a
    if layer.op in (_R.MAX, _R.MIN):
        if any(a.shape[i] == 0 for i in axes):
            return _extreme_of_nothing(x, axes, keep, largest=layer.op == _R.MAX).to(a.dtype)
        found = x.amax(axes, keepdim=keep) if layer.op == _R.MAX else x.amin(axes, keepdim=keep)
        return found.to(a.dtype)
    if layer.op not in (_R.SUM, _R.AVG):
        raise NotImplementedError(layer.op)
    return (x.sum if layer.op == _R.SUM else x.mean)(axes, keepdim=keep).to(a.dtype)


def _extreme_of_nothing(x: Tensor, axes: list[int], keep: bool, *, largest: bool) -> Tensor:
    limits = torch.finfo(x.dtype) if x.dtype.is_floating_point else torch.iinfo(x.dtype)
    dims = [1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes]
    return torch.full(dims, limits.min if largest else limits.max, dtype=x.dtype)


def normalization(layer: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Return a LayerNorm."""
    axes, wide = axes_of(layer.axes, x.dim()), x.float()
    centred = wide - wide.mean(axes, keepdim=True)
    deviation = torch.sqrt((centred**2).mean(axes, keepdim=True) + layer.epsilon)
    return (centred / deviation * scale.float() + bias.float()).to(x.dtype)


def fill(layer: Any, dims: Tensor | None = None, *ends: Tensor) -> Tensor:
    """Return a grid of equal steps; random numbers are all a half."""
    sizes = [int(d) for d in (dims.tolist() if dims is not None else layer.shape_)]
    if layer.op != FillOperation.LINSPACE:
        return torch.full(sizes, 0.5)
    first, step = ends if ends else (torch.tensor(layer.alpha), torch.tensor([layer.beta]))
    grid = first.to(torch.float64)
    for axis, size in enumerate(sizes):
        view = [size if i == axis else 1 for i in range(len(sizes))]
        grid = grid + (torch.arange(size) * step.reshape(-1)[axis].double()).reshape(view)
    return grid.expand(sizes).to(TORCH[layer.output_type])


def topk(layer: Any, a: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest values along an axis, and where they are."""
    (axis,) = axes_of(layer.axes, a.dim())
    wanted = int(count) if count is not None else layer.k
    largest = layer.op == TopKOperation.MAX
    values, index = torch.topk(a.float(), wanted, dim=axis, largest=largest)
    return values.to(a.dtype), index.to(torch.int32)


def concatenation(layer: Any, *parts: Tensor) -> Tensor:
    """Join tensors of one type."""
    for part in parts[1:]:
        require_alike(parts[0], part)
    return torch.cat(parts, layer.axis)


def selection(layer: Any, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Choose between two tensors of one type."""
    require_alike(a, b)
    return torch.where(condition, a, b)


def quantization(layer: Any, x: Tensor, scale: Tensor) -> Tensor:
    """Return values of 8 bits."""
    kind = TORCH[DataType(layer.output_kind)]
    q = x.float() / _along(layer, x, scale)
    if kind == torch.float8_e4m3fn:
        return q.clamp(-448, 448).to(kind)
    return q.round().clamp(-128, 127).to(kind)


def dequantization(layer: Any, x: Tensor, scale: Tensor) -> Tensor:
    """Return the values that 8 bits stand for."""
    return (x.float() * _along(layer, x, scale)).to(TORCH[DataType(layer.output_kind)])


def _along(layer: Any, x: Tensor, scale: Tensor) -> Tensor:
    wide = scale.float()
    if wide.dim() != 1 or wide.numel() == 1:
        return wide
    return wide.reshape([-1 if i == layer.axis else 1 for i in range(x.dim())])
