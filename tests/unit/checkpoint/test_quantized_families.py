"""Every family is quantised through its own table, and every rank holds its part of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from specpipe.checkpoint.convert import read_model
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.quantize import quantize
from specpipe.checkpoint.quantized.formats import (
    LINEARS,
    NO_EXPERTS,
    PLAIN,
    Quantizing,
    group_size,
)
from specpipe.checkpoint.shard import cut, local_name, ranks
from specpipe.checkpoint.source import open_source, read_tensors
from specpipe.core.divisibility import Parallel
from specpipe.core.errors import Unsupported
from specpipe.core.model import Quantization
from specpipe.engine.openvino.weights import map_weights
from tests.helpers.calibrated_models import convert_invented
from tests.helpers.families import WORLDS, make_family
from tests.helpers.models import make_llama
from tests.helpers.packed_models import pack_model
from tests.helpers.sharding import put

FORMATS: list[Quantization] = ["fp8", "int8_sq", "int4_awq", "nvfp4"]
# half a step of each format, relative to the largest weight that shares its scale
STEP = {"fp8": 1 / 28, "int8_sq": 1 / 254, "int4_awq": 1 / 14, "nvfp4": 1 / 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_family_is_quantised_or_refused_for_its_experts(name: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", name, next(iter(WORLDS[name].variants)))
    if WORLDS[name].rewrite:
        WORLDS[name].rewrite(folder)
    source = open_source(folder)
    model = read_model(source, "float32")
    plain_folder = convert_invented(source, tmp_path / "plain", PLAIN, Parallel())
    plain = map_weights(plain_folder / "rank0.safetensors")
    for weights_in in FORMATS:
        quantizing = Quantizing(weights_in)
        if model.moe and weights_in in NO_EXPERTS:
            with pytest.raises(
                Unsupported, match="TensorRT-LLM(.s loader reads| has no SmoothQuant)"
            ):
                convert_invented(source, tmp_path / weights_in, quantizing, Parallel())
            continue
        if weights_in == "int4_awq" and group_size(quantizing, model) is None:
            continue
        out = convert_invented(source, tmp_path / weights_in, quantizing, Parallel())
        tensors, changed = map_weights(out / "rank0.safetensors"), set()
        for tensor in plain.tensors:
            before, after = plain.float32(tensor), tensors.float32(tensor)
            inputs = f"{tensor.removesuffix('weight')}prequant_scaling_factor"
            if weights_in == "int8_sq" and inputs in tensors.tensors:
                after = after * tensors.float32(inputs)
            changed |= set() if np.array_equal(before, after) else {tensor}
            limit = np.abs(before).max() * STEP[weights_in] * 3.1  # input scales differ by three
            assert np.abs(before - after).max() <= limit, tensor
        assert changed == {t for t in plain.tensors if t.removesuffix(".weight").endswith(LINEARS)}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama whose groups of 64 columns divide between two ranks."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return make_llama(folder, seed=7, hidden_size=128, num_attention_heads=8,
                      num_key_value_heads=4, intermediate_size=256)  # fmt: skip


@pytest.mark.parametrize("weights_in", [*FORMATS, "awq", "gptq", "modelopt_fp8"])
def test_the_ranks_of_a_quantised_checkpoint_make_the_whole_one(
    weights_in: Any, wide: Path, tmp_path: Path
) -> None:
    folder, quantizing, parallel = wide, Quantizing(weights_in, tp_size=2), Parallel(2, 2)
    if weights_in not in FORMATS:
        folder, quantizing = tmp_path / "model", Quantizing(tp_size=2)
        pack_model(wide, folder, weights_in)
    source = open_source(folder)
    model = read_model(source, "float32")
    one, four = tmp_path / "one", tmp_path / "four"
    whole = load_file(convert_invented(source, one, quantizing, Parallel()) / "rank0.safetensors")
    convert_invented(source, four, quantizing, parallel)
    with read_tensors(source.weights) as reader:
        plans = find_family(source.hf_config).tensors(model)
        plans, _ = quantize(source, plans, model, quantizing, reader, one)
    assert {plan.name for plan in plans} == set(whole)
    for plan in plans:
        joined = torch.zeros(plan.shape)
        seen = torch.zeros(plan.shape, dtype=torch.bool)
        for rank in ranks(parallel):
            name = local_name(plan, rank, model)
            if name is not None:
                held = load_file(four / rank.file)[name].float()
                put(joined, seen, cut(plan, rank, model), held)
        assert seen.all() and torch.equal(joined, whole[plan.name].float()), plan.name
