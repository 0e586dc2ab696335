"""Checkpoints quantized by other tools: every number is read in its layout, and kept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.convert import Conversion, survey
from specpipe.checkpoint.quantize import check_quantization
from specpipe.checkpoint.quantized.foreign import find_foreign
from specpipe.checkpoint.source import open_source
from specpipe.config.run_config import EngineOptions
from specpipe.core.artifacts import read_model_config
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.openvino.weights import Weights, map_weights
from specpipe.validate.reference import Reference
from tests.helpers.cpu_engines import load_compiled
from tests.helpers.engine_steps import alone, item
from tests.helpers.packed_models import pack_model

AT, THEIRS = "transformer.layers.1.", "model.layers.1."
LAYERS = {
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.dense": ["self_attn.o_proj"], "mlp.fc": ["mlp.gate_proj"],
    "mlp.gate": ["mlp.up_proj"], "mlp.proj": ["mlp.down_proj"],
}  # fmt: skip
Packed = tuple[Path, Path, dict[str, torch.Tensor]]  # as found, as converted, what it means


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packed]:
    """Return the tiny model, quantised by every method and converted."""
    folder, found = tmp_path_factory.mktemp("packed"), {}
    for method in ("awq", "gptq", "modelopt_fp8"):
        meant = pack_model(tiny, folder / method, method)
        out = folder / f"{method}.out"
        out.mkdir()
        source = open_source(folder / method)
        Conversion(source, "float32").write(out, lambda done, total: None)
        found[method] = (folder / method, out, meant)
    return found


def meant_by(layer: str, meant: dict[str, torch.Tensor]) -> np.ndarray:
    parts = [meant[f"{THEIRS}{name}.weight"] for name in LAYERS[layer]]
    return torch.cat(parts).numpy()


def read(out: Path) -> Weights:
    return map_weights(out / "rank0.safetensors")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_int4_weights_keep_every_bit(method: str, layer: str, packed: dict[str, Packed]) -> None:
    _, out, meant = packed[method]
    assert np.array_equal(read(out).float32(f"{AT}{layer}.weight"), meant_by(layer, meant))


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer != "attention.qkv"])
def test_fp8_weights_of_their_own_keep_every_bit(layer: str, packed: dict[str, Packed]) -> None:
    _, out, meant = packed["modelopt_fp8"]
    assert np.array_equal(read(out).float32(f"{AT}{layer}.weight"), meant_by(layer, meant))


def test_fp8_weights_of_a_fused_layer_come_under_their_largest_scale(
    packed: dict[str, Packed],
) -> None:
    folder, out, meant = packed["modelopt_fp8"]
    theirs = load_file(folder / "model.safetensors")
    scales = [float(theirs[f"{THEIRS}{n}.weight_scale"]) for n in LAYERS["attention.qkv"]]
    tensors = load_file(out / "rank0.safetensors")
    assert tensors[f"{AT}attention.qkv.weights_scaling_factor"].tolist() == [max(scales)]
    inputs = tensors[f"{AT}attention.qkv.activation_scaling_factor"].tolist()
    assert inputs == pytest.approx([0.01 * 65])
    expected = meant_by("attention.qkv", meant)
    error = np.abs(read(out).float32(f"{AT}attention.qkv.weight") - expected)
    assert (error <= np.abs(expected) / 16 + max(scales) / 1024).all() and error.any()
    assert tensors[f"{AT}attention.kv_cache_scaling_factor"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("awq", {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": 64,
                 "has_zero_point": True, "pre_quant_scale": False}),
        ("gptq", {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": 64,
                  "has_zero_point": True, "pre_quant_scale": False}),
        ("modelopt_fp8", {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}),
    ],
)  # fmt: skip
def test_config_json_says_how_in_upstreams_words(
    method: str, said: dict[str, Any], packed: dict[str, Packed]
) -> None:
    config = json.loads((packed[method][1] / "config.json").read_text())["quantization"]
    assert "*lm_head" in config.pop("exclude_modules")
    assert config == said


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_the_cpu_engine_answers_as_the_model_whose_weights_they_mean(
    method: str, packed: dict[str, Packed], tiny: Path, tmp_path: Path
) -> None:
    _, out, meant = packed[method]
    model = AutoModelForCausalLM.from_pretrained(tiny).float().eval()
    model.load_state_dict(meant, strict=False)
    sequence = np.random.default_rng(0).integers(3, 300, 40).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([sequence])).logits[0, 19:].numpy()
    engine = load_compiled(out, tmp_path / "engine", "int4_awq")
    logits = alone(engine, item(engine.open(), sequence, wanted=range(19, len(sequence))))
    assert np.abs(logits - expected).max() < 1e-3


@pytest.mark.parametrize("method", ["awq", "gptq", "modelopt_fp8"])
def test_the_reference_is_the_model_whose_weights_they_mean(
    method: str, packed: dict[str, Packed], tiny: Path
) -> None:
    folder, _, meant = packed[method]
    model = AutoModelForCausalLM.from_pretrained(tiny).float().eval()
    model.load_state_dict(meant, strict=False)
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7]])).logits[0].numpy()
    assert np.array_equal(Reference(folder).logits([5, 6, 7]), expected)


def test_a_bias_that_is_not_zero_is_not_dropped(
    packed: dict[str, Packed], tmp_path: Path, tiny: Path
) -> None:
    from safetensors.torch import save_file

    pack_model(tiny, tmp_path / "gptq", "gptq")
    file = tmp_path / "gptq" / "model.safetensors"
    tensors = load_file(file)
    tensors[f"{THEIRS}mlp.up_proj.bias"][3] = 1
    save_file(tensors, file)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(Exception, match=r"unexpected: model.layers.1.mlp.up_proj.bias"):
        Conversion(open_source(tmp_path / "gptq"), "float32").write(out, lambda done, total: None)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised by 'bitsandbytes'"),
        ({"quant_method": "awq", "version": "gemv"}, "awq with version"),
        ({"quant_method": "gptq", "desc_act": True, "bits": 3}, "gptq with bits"),
        ({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, "gptq with version"),
        ({"quant_method": "gptq", "group_size": -1}, "gptq with group_size"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4 with KV cache None"),
    ],
)
def test_layouts_that_cannot_be_read_are_named(
    facts: dict[str, Any], said: str, tiny: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(tiny, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": facts}))
    with pytest.raises(Unsupported, match=said):
        find_foreign(open_source(tmp_path / "model"))


def test_the_config_must_say_what_the_checkpoint_is(packed: dict[str, Packed]) -> None:
    folder, out, _ = packed["gptq"]
    model = read_model_config(out)

    def said(**engine: Any) -> list[str]:
        options = EngineOptions("tensorrt", **engine)
        return [str(r) for r in check_quantization(options, model, open_source(folder))]

    assert said(quantization="int4_awq") == []
    (reason,) = said(quantization="fp8")
    assert "quantised already (gptq)" in reason and "set engine.quantization: int4_awq" in reason
    assert said(quantization="int4_awq", kv_cache_quantization="fp8") == []
    assert "already" in said(quantization="int4_awq", kv_cache_quantization="int8")[0]
    assert "64 times tp_size 4" in said(quantization="int4_awq", tp_size=4)[0]


def repacked(tiny: Path, out: Path, permuted: bool, **facts: Any) -> Path:
    """Return the tiny model packed by GPTQ, with other facts, and its columns out of order."""
    from safetensors.torch import save_file

    pack_model(tiny, out, "gptq")
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] |= facts
    (out / "config.json").write_text(json.dumps(config))
    if permuted:
        tensors = load_file(out / "model.safetensors")
        name = f"{THEIRS}mlp.down_proj.g_idx"
        tensors[name] = tensors[name].flip(0).contiguous()
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("desc_act", [True, False])
def test_the_order_of_groups_decides_not_desc_act(
    desc_act: bool, tiny: Path, tmp_path: Path
) -> None:
    ordered = repacked(tiny, tmp_path / "ordered", permuted=False, desc_act=desc_act)
    survey(open_source(ordered), "float32")
    out = tmp_path / "out"
    out.mkdir()
    Conversion(open_source(ordered), "float32").write(out, lambda done, total: None)
    permuted = repacked(tiny, tmp_path / "permuted", permuted=True, desc_act=desc_act)
    with pytest.raises(Unsupported, match=r"down_proj\.g_idx puts the columns .* out of order"):
        survey(open_source(permuted), "float32")


@pytest.mark.parametrize("method", ["GPTQ", "Gptq"])
def test_the_method_is_known_in_any_case(method: str, tiny: Path, tmp_path: Path) -> None:
    folder = repacked(tiny, tmp_path / "model", permuted=False, quant_method=method)
    found = find_foreign(open_source(folder))
    assert found is not None and (found.method, found.group) == ("gptq", 64)


@pytest.mark.parametrize(
    ("method", "name", "facts"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 64, "desc_act": False}),
        ("awq", "quant_config.json",
         {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}),
    ],
)  # fmt: skip
def test_a_description_of_its_own_is_read(
    method: str, name: str, facts: dict[str, Any], packed: dict[str, Packed], tiny: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder, out = tmp_path / "model", tmp_path / "out"
    pack_model(tiny, folder, method)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps(facts))
    out.mkdir()
    source = open_source(folder)
    Conversion(source, "float32").write(out, lambda done, total: None)
    ours, theirs = (load_file(f / "rank0.safetensors") for f in (out, packed[method][1]))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert folder / name in source.files()
    assert Reference(folder).logits([5, 6]).shape == (2, 320)


def test_a_description_without_quantised_tensors_is_refused(tiny: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 64}))
    with pytest.raises(ConfigError, match="described as quantised by gptq, but no tensor is"):
        survey(open_source(folder), "float32")
