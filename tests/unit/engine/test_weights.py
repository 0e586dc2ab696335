"""Which constant a weight becomes, and what quantisation costs."""

import tracemalloc

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.openvino.weights import BLOCK_VALUES, int4, int8, map_weights, plain, widen


def evaluate(node: ov.Node) -> np.ndarray:
    unused = op.parameter([1], name="unused")
    model = ov.Model([op.result(node)], [unused], "weights")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return next(iter(compiled({0: np.zeros(1, np.float32)}).values()))


def constant_type(node: ov.Node) -> str:
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name()


def bfloat16(values: list[float]) -> np.ndarray:
    return (np.array([values], np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("array", "dtype", "kind"),
    [
        (np.array([[1.5, -0.25]], np.float32), "F32", "f16"),
        (np.array([[1.0001, 2.0]], np.float32), "F32", "f32"),
        (np.array([[1.5, 2.0]], np.float16), "F16", "f16"),
        (bfloat16([1.5, -3.0]), "BF16", "f16"),
        (bfloat16([1e-20, 1e20]), "BF16", "bf16"),  # float16 has neither
        (np.array([[2.0**-100, 1.0]], np.float32), "F32", "bf16"),
    ],
)
def test_weights_keep_their_values_in_the_smallest_exact_type(array, dtype, kind) -> None:
    node = plain(array, dtype)
    assert constant_type(node) == kind
    np.testing.assert_array_equal(evaluate(node), widen(array, dtype))


def test_int8_is_off_by_at_most_half_a_level(rng) -> None:
    weights = rng.normal(size=(8, 64)).astype(np.float32)
    level = np.abs(weights).max(axis=1, keepdims=True) / 127
    assert (np.abs(evaluate(int8(weights)) - weights) <= 0.51 * level).all()


def test_int4_is_off_by_at_most_half_a_level_of_its_group(rng) -> None:
    weights = rng.normal(size=(3, 128)).astype(np.float32)
    groups = weights.reshape(3, 2, 64)
    level = (np.maximum(groups.max(2), 0) - np.minimum(groups.min(2), 0)) / 15
    error = np.abs(evaluate(int4(weights)) - weights).reshape(3, 2, 64).max(2)
    assert (error <= 1.02 * level).all()


@pytest.mark.parametrize("quantize", [int8, int4])
def test_each_row_is_quantized_alone_whatever_the_block(quantize, rng) -> None:
    weights = rng.normal(size=(5, BLOCK_VALUES // 2)).astype(np.float32)  # blocks of 2, 2, 1 rows
    alone = [evaluate(quantize(row[None])) for row in weights]
    np.testing.assert_array_equal(evaluate(quantize(weights)), np.concatenate(alone))


@pytest.mark.parametrize(("last", "kind"), [(1.5, "f16"), (1e20, "bf16"), (1.00001, "f32")])
def test_the_type_of_a_weight_is_exact_for_all_blocks(last, kind) -> None:
    weights = np.full((3, BLOCK_VALUES), 0.5, np.float32)
    weights[2, -1] = last if kind == "f32" else widen(bfloat16([last]), "BF16")[0, 0]
    node = plain(weights, "F32")
    assert constant_type(node) == kind
    np.testing.assert_array_equal(evaluate(node), weights)


@pytest.mark.parametrize("convert", [plain, int8, int4])
def test_conversion_holds_no_float32_copy_of_a_large_weight(convert) -> None:
    bits = np.full((12, BLOCK_VALUES), 0x3F80, np.uint16)
    tracemalloc.start()
    convert(bits, "BF16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * bits.size


def test_rows_of_zeros_survive_quantisation() -> None:
    zeros = np.zeros((2, 64), np.float32)
    np.testing.assert_array_equal(evaluate(int8(zeros)), zeros)
    np.testing.assert_array_equal(evaluate(int4(zeros)), zeros)


def test_int4_needs_whole_groups() -> None:
    with pytest.raises(Unsupported, match="multiples of 64"):
        int4(np.zeros((2, 65), np.float32))


def test_a_missing_tensor_is_named(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="no tensor b"):
        map_weights(tmp_path / "w.safetensors").raw("b")
