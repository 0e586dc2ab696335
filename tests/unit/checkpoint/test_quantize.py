"""Quantised checkpoints: few bits, upstream's names, and the same values on every way back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.quantized import arithmetic as bits
from specpipe.checkpoint.quantized.calibrate import load_model
from specpipe.checkpoint.quantized.calibration import Calibration, read_calibration
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.source import open_source
from specpipe.core.errors import ConfigError, StageFailed
from specpipe.core.model import Quantization
from specpipe.engine.openvino import dequantize
from specpipe.engine.openvino.weights import map_weights
from tests.helpers.calibrated_models import linears, round_inputs, write_quantised
from tests.helpers.cpu_engines import load_compiled
from tests.helpers.engine_steps import alone, item
from tests.helpers.models import make_llama

FORMATS: list[Quantization] = ["fp8", "int8_sq", "int4_awq", "nvfp4"]
QKV = "transformer.layers.0.attention.qkv"


@pytest.fixture
def weights() -> torch.Tensor:
    """Return weights of very different sizes, with a row of zeros."""
    torch.manual_seed(0)
    made = torch.randn(6, 128) * torch.tensor([1e-4, 0.1, 1, 3, 50, 0])[:, None]
    return made


@pytest.fixture(scope="module")
def quantised(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Quantization, Path]:
    """Return the tiny model, quantised in every calibrated format."""
    folder = tmp_path_factory.mktemp("quantised")
    return {w: write_quantised(tiny, folder / w, Quantizing(w)) for w in FORMATS}


def nearest(values: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return (values[..., None] - table).abs().amin(dim=-1)


def test_fp8_takes_the_nearest_number_and_saturates(weights: torch.Tensor) -> None:
    table = torch.tensor(dequantize.FP8[np.isfinite(dequantize.FP8)])
    scale = bits.fp8_scale(bits.largest(weights))
    stored = bits.to_fp8(weights, scale).float()
    assert torch.equal((stored - weights / scale).abs(), nearest(weights / scale, table))
    assert bits.to_fp8(weights, scale / 2).float().abs().max() == bits.FP8_MAX


def test_fp4_takes_the_nearest_number_and_the_even_one_of_two() -> None:
    halfway = torch.tensor(
        [[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 9, -0.25, -0.75, -5, 0, 1, 2, 3, 4]]
    )
    packed = bits.to_fp4(halfway, torch.ones(1, 1).to(torch.float8_e4m3fn), 1.0)
    one = np.ones(1, np.float32)
    values = dequantize.from_fp4(packed.numpy(), np.full((1, 1), 0x38, np.uint8), one)
    assert values.tolist() == [[0, 1, 1, 2, 2, 4, 4, 6, 0, -1, -4, 0, 1, 2, 3, 4]]


def test_every_e4m3_byte_is_read_as_torch_reads_it() -> None:
    stored = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(dequantize.FP8, stored, equal_nan=True)


def test_int4_is_packed_in_pairs_of_rows_and_comes_back() -> None:
    levels = torch.tensor([[-8, 7, 0], [1, -1, 3]], dtype=torch.int8)
    packed = bits.pack_int4(levels)
    assert packed.view(torch.uint8).tolist() == [[0x18, 0xF7, 0x30]]
    assert torch.equal(bits.unpack_int4(packed), levels)


@pytest.mark.parametrize("group", [64, 128])
def test_int4_is_off_by_half_a_level_at_most(weights: torch.Tensor, group: int) -> None:
    scale = bits.group_scale(weights, group)
    back = dequantize.from_int4(bits.to_int4(weights, scale).numpy(), scale.numpy(), None)
    error = np.abs(back - weights.numpy()).reshape(6, -1, group)
    assert (error <= scale.numpy()[:, :, None] * 0.5001).all()


def test_int8_is_off_by_half_a_level_at_most(weights: torch.Tensor) -> None:
    scale = bits.row_scale(weights)
    back = dequantize.from_int8(bits.to_int8(weights, scale).numpy(), scale.numpy())
    assert (np.abs(back - weights.numpy()) <= scale.numpy()[:, None] * 0.5001).all()


def test_fp4_is_off_by_a_sixth_of_the_largest_of_its_group(weights: torch.Tensor) -> None:
    whole = bits.largest(weights) / 2688
    scale = bits.fp4_scale(weights, whole)
    packed = bits.to_fp4(weights, scale, whole)
    back = dequantize.from_fp4(
        packed.numpy(), scale.view(torch.uint8).numpy(), np.array([whole], np.float32)
    )
    limit = scale.float().numpy() * whole  # a step of e2m1 at its top is two: half of that
    assert (np.abs(back - weights.numpy()).reshape(6, -1, 16) <= limit[:, :, None] * 1.07).all()


def test_large_weights_are_treated_in_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    weights = torch.randn(64, 32)
    whole = bits.to_fp8(weights, 0.01), bits.group_scale(weights, 16)
    monkeypatch.setattr(bits, "BLOCK_VALUES", 100)
    assert torch.equal(whole[0].float(), bits.to_fp8(weights, 0.01).float())
    assert torch.equal(whole[1], bits.group_scale(weights, 16))


TENSORS = {
    "fp8": {"weight": ("float8_e4m3fn", (128, 64)), "weights_scaling_factor": ("float32", (1,)),
            "activation_scaling_factor": ("float32", (1,))},
    "int8_sq": {"weight": ("int8", (128, 64)), "weights_scaling_factor": ("float32", (128,)),
                "activation_scaling_factor": ("float32", (1,)),
                "prequant_scaling_factor": ("float32", (64,))},
    "int4_awq": {"weight": ("int8", (64, 64)), "weights_scaling_factor": ("float32", (128, 1)),
                 "prequant_scaling_factor": ("float32", (64,))},
    "nvfp4": {"weight": ("uint8", (128, 32)), "weights_scaling_factor": ("float8_e4m3fn", (128, 4)),
              "weights_scaling_factor_2": ("float32", (1,)),
              "activation_scaling_factor": ("float32", (1,))},
}  # fmt: skip


@pytest.mark.parametrize("weights_in", FORMATS)
def test_a_layer_has_the_tensors_that_trtllm_build_reads(
    weights_in: Quantization, quantised: dict[Quantization, Path]
) -> None:
    tensors = load_file(quantised[weights_in] / "rank0.safetensors")
    found = {
        name.rpartition(".")[2]: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
        if name.startswith(f"{QKV}.")
    }
    assert found == TENSORS[weights_in]
    assert tensors["lm_head.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("weights_in", "said"),
    [
        ("fp8", {"quant_algo": "FP8"}),
        ("int8_sq", {"quant_algo": "W8A8_SQ_PER_CHANNEL"}),
        ("int4_awq", {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": False,
                      "pre_quant_scale": True}),
        ("nvfp4", {"quant_algo": "NVFP4"}),
    ],
)  # fmt: skip
def test_config_json_says_how_in_upstreams_words(
    weights_in: Quantization, said: dict[str, Any], quantised: dict[Quantization, Path]
) -> None:
    config = json.loads((quantised[weights_in] / "config.json").read_text())["quantization"]
    assert "*lm_head" in config.pop("exclude_modules")
    assert config == {"kv_cache_quant_algo": None, **said}


def fake_quantised(folder: Path, checkpoint: Path, weights_in: Quantization) -> Any:
    """Return the transformers model whose layers compute as the quantised ones do."""
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    tensors = map_weights(checkpoint / "rank0.safetensors")
    of = {"qkv": "attention.qkv", "o_proj": "attention.dense", "gate_proj": "mlp.fc",
          "up_proj": "mlp.gate", "down_proj": "mlp.proj"}  # fmt: skip
    first = {"q_proj": 0, "k_proj": 64, "v_proj": 96}
    for name, layer in linears(model).items():
        part, index = name.rpartition(".")[2], name.split(".")[2]
        ours = f"transformer.layers.{index}.{of.get(part, of['qkv'])}.weight"
        rows = slice(first[part], first[part] + len(layer.weight)) if part in first else slice(None)
        layer.weight.data = torch.tensor(tensors.float32(ours)[rows])
        how = tensors.rounding(ours)
        if how is not None:
            layer.register_forward_pre_hook(lambda _, x, how=how: (round_inputs(x[0], how),))
    return model


@pytest.mark.parametrize("weights_in", FORMATS)
def test_the_cpu_engine_computes_what_a_gpu_would_with_the_checkpoint(
    weights_in: Quantization, quantised: dict[Quantization, Path], tiny: Path, tmp_path: Path
) -> None:
    sequence = np.random.default_rng(0).integers(3, 300, 60).tolist()
    with torch.no_grad():
        expected = fake_quantised(tiny, quantised[weights_in], weights_in)(torch.tensor([sequence]))
        plain = AutoModelForCausalLM.from_pretrained(tiny).float()(torch.tensor([sequence]))
    engine = load_compiled(quantised[weights_in], tmp_path / "engine", weights_in)
    logits = alone(engine, item(engine.open(), sequence, wanted=range(19, len(sequence))))
    theirs = expected.logits[0, 19:].numpy()
    # a value next to a rounding boundary may fall on either side, which moves a few logits
    assert np.median(np.abs(logits - theirs)) < 1e-3
    assert (
        np.abs(logits - theirs).mean() < 0.1 * np.abs(plain.logits[0, 19:].numpy() - theirs).mean()
    )


def test_weights_only_are_left_to_trtllm_build(tiny: Path, tmp_path: Path) -> None:
    out = write_quantised(tiny, tmp_path / "out", Quantizing("int8"))
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert config["quant_algo"] == "W8A16"
    # upstream matches names of modules, and names of tensors: both must be there
    assert {"*shared_expert_gate", "*shared_expert_gate.weight"} <= set(config["exclude_modules"])
    assert load_file(out / "rank0.safetensors")[f"{QKV}.weight"].dtype == torch.float32


def test_a_given_list_of_excluded_modules_replaces_the_default(tiny: Path, tmp_path: Path) -> None:
    patterns = ("lm_head", "*embedding", "*.0.attention.*")
    out = write_quantised(tiny, tmp_path / "out", Quantizing("fp8", exclude_modules=patterns))
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert config["exclude_modules"] == list(patterns)
    tensors = load_file(out / "rank0.safetensors")
    assert tensors[f"{QKV}.weight"].dtype == torch.float32
    assert tensors["transformer.layers.1.attention.qkv.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(("kv_cache", "scale"), [("fp8", 1.0), ("int8", None)])
def test_the_kv_cache_gets_its_scale(kv_cache: Any, scale: Any, tiny: Path, tmp_path: Path) -> None:
    out = write_quantised(tiny, tmp_path / "out", Quantizing("none", kv_cache))
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert config == {"quant_algo": None, "kv_cache_quant_algo": kv_cache.upper()}
    name = "transformer.layers.1.attention.kv_cache_scaling_factor"
    found = read_calibration(out)
    assert found is not None
    parts = [f"model.layers.1.self_attn.{n}_proj" for n in "kv"]
    expected = scale or max(found.output_amax[p] for p in parts) / 127
    assert load_file(out / "rank0.safetensors")[name].tolist() == pytest.approx([expected])


def test_fused_layers_share_the_largest_input_and_the_mean_scale() -> None:
    scales = {"q": torch.tensor([1.0, 2.0]), "k": torch.tensor([3.0, 4.0])}
    found = Calibration({"q": 1.0, "k": 5.0}, scales, {})
    assert found.largest_input(["q", "k"]) == 5
    assert found.scale(["q", "k"]).tolist() == [2, 3]


def test_a_layer_that_no_prompt_reached_is_named() -> None:
    with pytest.raises(StageFailed, match="knows no inputs of model.layers.7.mlp.up_proj"):
        Calibration({}, {}, {}).largest_input(["model.layers.7.mlp.up_proj"])


def test_a_calibration_prompt_without_tokens_is_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    facts = json.loads((folder / "tokenizer_config.json").read_text())
    facts.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="the calibration prompt '' has no tokens"):
        load_model(open_source(folder), ["hello", ""])


def test_conversion_is_repeatable_byte_for_byte(
    quantised: dict[Quantization, Path], tiny: Path, tmp_path: Path
) -> None:
    again = write_quantised(tiny, tmp_path / "again", Quantizing("int4_awq"))
    for name in ("rank0.safetensors", "config.json", "calibration.safetensors"):
        assert (again / name).read_bytes() == (quantised["int4_awq"] / name).read_bytes()


def test_sixteen_bit_scales_are_those_that_the_weights_were_divided_by(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "model", seed=5)
    out = write_quantised(folder, tmp_path / "out", Quantizing("int4_awq"), "bfloat16")
    tensors = map_weights(out / "rank0.safetensors")
    name = "transformer.layers.0.mlp.proj"
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    original = state["model.layers.0.mlp.down_proj.weight"].float().numpy()
    scale = tensors.float32(f"{name}.weights_scaling_factor")
    inputs = tensors.float32(f"{name}.prequant_scaling_factor")
    error = np.abs(tensors.float32(f"{name}.weight") / inputs - original / inputs)
    assert (error.reshape(len(error), -1, 64) <= scale[:, :, None] * 0.502).all()


@pytest.mark.parametrize("weights_in", ["fp8", "nvfp4"])
def test_both_halves_of_a_gated_mlp_have_one_scale(
    weights_in: Quantization, quantised: dict[Quantization, Path], tiny: Path
) -> None:
    kind = {"fp8": "weights_scaling_factor", "nvfp4": "weights_scaling_factor_2"}[weights_in]
    tensors = load_file(quantised[weights_in] / "rank0.safetensors")
    at = "transformer.layers.1.mlp."
    assert torch.equal(tensors[f"{at}fc.{kind}"], tensors[f"{at}gate.{kind}"])
    state = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    halves = [state[f"model.layers.1.mlp.{n}_proj.weight"].abs().max() for n in ("gate", "up")]
    assert halves[0] != halves[1]
    top = {"fp8": 448, "nvfp4": 448 * 6}[weights_in]
    assert float(tensors[f"{at}fc.{kind}"]) == pytest.approx(float(max(halves)) / top)
