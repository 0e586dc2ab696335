"""The real Model-Optimizer calibrates, and its own export of the same model is the judge of ours.

Skipped where it is not installed: pip install -e '.[quantize]'.
"""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt", reason="pip install -e '.[quantize]'")

import torch
import transformers
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.quantized import calibrate
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.source import open_source
from specpipe.core.model import Quantization
from specpipe.engine.openvino.weights import map_weights
from tests.helpers.mixtures import MIXTURES, make_mixture
from tests.helpers.models import make_llama

pytestmark = pytest.mark.filterwarnings("ignore")
PROMPTS = ("The quick brown fox", "jumps over the lazy dog", "Pack my box")
FORMATS: list[Quantization] = ["fp8", "int8_sq", "int4_awq", "nvfp4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama whose widths divide by 128, as Model-Optimizer's groups do."""
    return make_llama(tmp_path_factory.mktemp("model") / "wide", seed=1, hidden_size=128,
                      num_attention_heads=8, num_key_value_heads=4, intermediate_size=256,
                      tie_word_embeddings=False)  # fmt: skip


def peer_export(model: Path, quantizing: Quantizing, out: Path, kind: str = "llama") -> None:
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        quantised = peer_quantised(model, quantizing)
        export_tensorrt_llm_checkpoint(
            quantised, kind, torch.float16, out, inference_tensor_parallel=1
        )


def peer_quantised(model: Path, quantizing: Quantizing) -> Any:
    network, tokens = calibrate.load_model(open_source(model), PROMPTS)
    return calibrate.quantize_model(network, quantizing, 128, tokens)


def convert(model: Path, quantizing: Quantizing, out: Path) -> Path:
    out.mkdir()
    Conversion(open_source(model), "float16", quantizing=quantizing).write(
        out, lambda done, total: None
    )
    return out


@pytest.mark.parametrize("weights_in", FORMATS)
def test_our_checkpoint_is_that_of_the_peer(
    weights_in: Quantization, model: Path, tmp_path: Path
) -> None:
    quantizing = Quantizing(weights_in, prompts=PROMPTS)
    ours, theirs = convert(model, quantizing, tmp_path / "ours"), tmp_path / "theirs"
    peer_export(model, quantizing, theirs)
    mine, other = (load_file(f / "rank0.safetensors") for f in (ours, theirs))
    assert mine.keys() == other.keys()
    if weights_in in ("fp8", "nvfp4"):  # without input scales, every byte is the same
        for name, tensor in other.items():
            assert torch.equal(mine[name].float(), tensor.float().reshape(mine[name].shape)), name
    # With input scales ours divides by the scale as it is written, theirs before it is rounded.
    save_file({n: t.reshape(mine[n].shape) for n, t in other.items()}, tmp_path / "flat")
    left, right = map_weights(ours / "rank0.safetensors"), map_weights(tmp_path / "flat")
    for name in (n for n in mine if n.endswith(".weight") and "layers" in n):
        a, b = left.float32(name), right.float32(name)
        assert np.abs(a - b).mean() <= 0.01 * np.abs(b).mean(), name
    assert quantization(ours, "quant_algo") == quantization(theirs, "quant_algo")
    for key in ("group_size", "has_zero_point", "pre_quant_scale") if "awq" in weights_in else ():
        assert quantization(ours, key) == quantization(theirs, key)


def quantization(folder: Path, key: str) -> Any:
    return json.loads((folder / "config.json").read_text())["quantization"].get(key)


def test_nothing_is_printed_to_standard_output(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(model, Quantizing("int8_sq", prompts=PROMPTS), tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_an_int8_cache_alone_is_calibrated_too(model: Path, tmp_path: Path) -> None:
    out = convert(model, Quantizing("none", "int8", prompts=PROMPTS), tmp_path / "out")
    name = "transformer.layers.0.attention.kv_cache_scaling_factor"
    assert 0 < float(load_file(out / "rank0.safetensors")[name]) < 1


def test_a_calibration_that_is_there_is_used_again(model: Path, tmp_path: Path) -> None:
    out = convert(model, Quantizing("fp8", prompts=PROMPTS), tmp_path / "out")
    other = tmp_path / "other"
    other.mkdir()
    file = "calibration.safetensors"
    (other / file).write_bytes((out / file).read_bytes())
    again = Quantizing("fp8", prompts=("a prompt that would give other numbers " * 9,))
    Conversion(open_source(model), "float16", quantizing=again).write(other, lambda d, t: None)
    ours, theirs = (f / "rank0.safetensors" for f in (out, other))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mixture(tmp_path_factory.mktemp("mixture") / "model", request.param)


def experts_of(out: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(out / "rank0.safetensors")
    return {n: t for n, t in tensors.items() if ".mlp.fc." in n or ".mlp.proj." in n}


def test_experts_are_calibrated_as_the_peer_exports_them_to_hugging_faces_layout(
    mixture: Path, tmp_path: Path
) -> None:
    from modelopt.torch.export import export_hf_checkpoint

    ours = convert(mixture, Quantizing("fp8", prompts=PROMPTS), tmp_path / "ours")
    with contextlib.redirect_stdout(io.StringIO()):
        quantised = peer_quantised(mixture, Quantizing("fp8"))
        export_hf_checkpoint(quantised, export_dir=tmp_path / "theirs")
    for file in mixture.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "theirs")
    read = experts_of(convert(tmp_path / "theirs", Quantizing(), tmp_path / "read"))
    mine = experts_of(ours)
    assert mine.keys() == read.keys()
    for name, tensor in mine.items():
        a, b = tensor.float(), read[name].float()
        if "fc.weight" in name and int(transformers.__version__[0]) < 5:
            # the halves of its fc have scales of their own there, and are rounded twice
            assert (a - b).abs().mean() <= 0.02 * a.abs().mean(), name
        else:
            assert torch.equal(a, b), name


@pytest.mark.skipif(
    int(transformers.__version__[0]) > 4, reason="its export knows no fused experts"
)
@pytest.mark.parametrize("weights_in", ["fp8", "int4_awq"])
def test_our_experts_are_those_of_the_peer(
    weights_in: Quantization, mixture: Path, tmp_path: Path
) -> None:
    quantizing = Quantizing(weights_in, prompts=PROMPTS)
    kind = "qwen" if "Qwen" in (mixture / "config.json").read_text() else "llama"
    peer_export(mixture, quantizing, tmp_path / "theirs", kind)
    mine = experts_of(convert(mixture, quantizing, tmp_path / "ours"))
    other = experts_of(tmp_path / "theirs")
    assert mine.keys() == other.keys()
    for name, tensor in other.items():
        if name.endswith("prequant_scaling_factor"):  # theirs has the same row for every expert
            rows = mine[name].float().expand(tensor.shape)
            assert torch.allclose(rows, tensor.float(), rtol=0.002), name
        elif weights_in == "fp8":
            assert torch.equal(mine[name].float(), tensor.float()), name
        else:  # ours divides by the scale as it is written, theirs before it is rounded
            a, b = mine[name].float(), tensor.float()
            assert a.shape == b.shape
            if name.endswith(".weight"):
                assert (a != b).float().mean() < 0.01, name
            else:
                assert torch.allclose(a, b, rtol=0.002), name
