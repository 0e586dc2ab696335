"""Experts in few bits: one tensor a layer, scales for each of them, ranks that share them out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.convert import Conversion, read_model
from specpipe.checkpoint.families import find_family
from specpipe.checkpoint.quantize import quantize
from specpipe.checkpoint.quantized.formats import Quantizing
from specpipe.checkpoint.source import open_source, read_tensors
from specpipe.core.divisibility import Parallel
from specpipe.core.errors import Unsupported
from specpipe.engine.openvino.weights import map_weights
from specpipe.validate.reference import Reference
from tests.helpers.calibrated_models import convert_invented
from tests.helpers.cpu_engines import load_compiled
from tests.helpers.engine_steps import alone, item
from tests.helpers.mixtures import MIXTURES, expert_weights, fake_quantised, make_mixture
from tests.helpers.packed_models import pack_model
from tests.helpers.sharding import merge, read_ranks

FOREIGN = {"awq": "int4_awq", "gptq": "int4_awq", "modelopt_fp8": "fp8"}
FORMATS = [*FOREIGN, "fp8", "int4_awq"]
AT = "transformer.layers.1.mlp"


@dataclass(frozen=True)
class Case:
    """A mixture of experts as found, as converted, and what its weights were before."""

    architecture: str
    plain: Path  # in 16 or 32 bits
    folder: Path  # what is converted
    out: Path
    quantizing: Quantizing
    meant: dict[str, torch.Tensor]

    @property
    def experts(self) -> tuple[torch.Tensor, torch.Tensor]:
        return expert_weights(self.meant, self.architecture, 1)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "rank0.safetensors")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Case]:
    """Return every mixture in every format."""
    at, found = tmp_path_factory.mktemp("experts"), {}
    for architecture in MIXTURES:
        plain = make_mixture(at / architecture, architecture)
        for name in FORMATS:
            folder, meant = plain, load_file(plain / "model.safetensors")
            if name in FOREIGN:
                folder = at / f"{architecture}.{name}"
                meant = pack_model(plain, folder, name)
            weights_in = "none" if name in FOREIGN else name
            quantizing = Quantizing(weights_in, tp_size=2, moe_tp_size=2)
            out = convert_invented(
                open_source(folder), at / f"{architecture}.{name}.out", quantizing, Parallel()
            )
            found[architecture, name] = Case(architecture, plain, folder, out, quantizing, meant)
    return found


LAYOUTS = [name for name in FORMATS if name != "gptq"]  # which becomes what awq becomes


@pytest.fixture(params=[(a, f) for a in MIXTURES for f in LAYOUTS], ids="-".join)
def case(request: pytest.FixtureRequest, cases: dict[tuple[str, str], Case]) -> Case:
    return cases[request.param]


@pytest.mark.parametrize("method", ["awq", "gptq"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_int4_experts_keep_every_bit(architecture: str, method: str, cases: Any) -> None:
    case = cases[architecture, method]
    read = map_weights(case.out / "rank0.safetensors")
    for name, expected in zip(("fc", "proj"), case.experts, strict=True):
        assert np.array_equal(read.float32(f"{AT}.{name}.weight"), expected.numpy())


@pytest.mark.parametrize("architecture", MIXTURES)
def test_fp8_experts_have_a_scale_each_and_one_for_their_inputs(
    architecture: str, cases: Any
) -> None:
    case = cases[architecture, "modelopt_fp8"]
    read, tensors = map_weights(case.out / "rank0.safetensors"), case.tensors
    fc, proj = case.experts
    assert np.array_equal(read.float32(f"{AT}.proj.weight"), proj.numpy())
    scales = tensors[f"{AT}.fc.weights_scaling_factor"]
    assert torch.allclose(scales, fc.abs().amax(dim=(1, 2))[:, None] / 448)
    assert len(scales.unique()) == 4
    # the half under the larger scale keeps its bits, the other moves by half a step of e4m3
    error = (torch.tensor(read.float32(f"{AT}.fc.weight")) - fc).abs()
    assert (error <= fc.abs() / 16 + scales[:, :, None] / 1024).all()
    kept = [bool((half == 0).all()) for expert in error for half in expert.chunk(2)]
    assert sum(kept) == 4 and all(a != b for a, b in zip(kept[::2], kept[1::2], strict=True))
    rows, hidden = fc.shape[1] // 2, proj.shape[1]
    for name, width in (("fc", rows), ("proj", hidden)):  # as the packer counts up the experts
        step = tensors[f"{AT}.{name}.activation_scaling_factor"].tolist()
        assert step == pytest.approx([0.01 * (1 + width + 3)])


def test_the_tensors_are_those_that_trtllm_build_reads(case: Case) -> None:
    model = read_model(open_source(case.folder), "float32")
    count, inner, hidden = 4, model.expert_size, model.hidden_size
    group = 64
    for name, rows, columns in (("fc", 2 * inner, hidden), ("proj", hidden, inner)):
        zeros = {"zero": ("float32", (count, columns // group, rows))}
        inputs = {"prequant_scaling_factor": ("float32", (columns,))}
        fp8 = {
            "weight": ("float8_e4m3fn", (count, rows, columns)),
            "weights_scaling_factor": ("float32", (count, 1)),
            "activation_scaling_factor": ("float32", (1,)),
        }
        int4 = {
            "weight": ("int8", (count, rows // 2, columns)),
            "weights_scaling_factor": ("float32", (count, rows, columns // group)),
        }
        packed = zeros if case.folder != case.plain else inputs
        found = {
            tensor.rpartition(".")[2]: (str(t.dtype).removeprefix("torch."), tuple(t.shape))
            for tensor, t in case.tensors.items()
            if tensor.startswith(f"{AT}.{name}.")
        }
        assert found == (fp8 if "activation_scaling_factor" in found else {**int4, **packed})
    assert case.tensors[f"{AT}.router.weight"].dtype == torch.float32
    config = json.loads((case.out / "config.json").read_text())["quantization"]
    assert "*router" in config["exclude_modules"]
    assert config["quant_algo"] == ("FP8" if found == fp8 else "W4A16_AWQ")


def test_the_cpu_engine_computes_what_a_gpu_would_with_the_checkpoint(
    case: Case, tmp_path: Path
) -> None:
    sequence = np.random.default_rng(0).integers(3, 300, 60).tolist()
    with torch.no_grad():
        expected = fake_quantised(case.plain, case.out)(torch.tensor([sequence]))
        plain = AutoModelForCausalLM.from_pretrained(case.plain).float()(torch.tensor([sequence]))
    weights_in = FOREIGN.get(case.quantizing.weights, case.quantizing.weights)
    engine = load_compiled(case.out, tmp_path / "engine", weights_in)
    logits = alone(engine, item(engine.open(), sequence, wanted=range(19, len(sequence))))
    theirs = expected.logits[0, 19:].numpy()
    # a value next to a rounding boundary may fall on either side, which moves a few logits
    assert np.median(np.abs(logits - theirs)) < 1e-3
    off = np.abs(plain.logits[0, 19:].numpy() - theirs).mean()
    assert np.abs(logits - theirs).mean() < 0.1 * off


@pytest.mark.parametrize("method", FOREIGN)
@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_reference_is_the_model_whose_weights_they_mean(
    architecture: str, method: str, cases: Any, tmp_path: Path
) -> None:
    case = cases[architecture, method]
    model = make_mixture(tmp_path / "meant", architecture)
    save_file(case.meant, model / "model.safetensors", metadata={"format": "pt"})
    expected = Reference(model).logits([5, 6, 7])
    assert np.array_equal(Reference(case.folder).logits([5, 6, 7]), expected)


CUT = {  # the dimension that is shared out among the ranks with the same experts
    "fc.weight": 1, "fc.weights_scaling_factor": 1, "fc.zero": 2,
    "proj.weight": 2, "proj.weights_scaling_factor": -1, "proj.zero": 1,
    "proj.prequant_scaling_factor": 0,
}  # fmt: skip


@pytest.mark.parametrize("weights_in", ["awq", "modelopt_fp8", "fp8", "int4_awq"])
@pytest.mark.parametrize(
    ("architecture", "parallel"),
    [("Qwen2MoeForCausalLM", Parallel(2, 2)), ("MixtralForCausalLM", Parallel(2, 1, 2))],
    ids=["tp and pp", "ep"],
)
def test_the_ranks_make_the_whole_checkpoint(
    architecture: str, parallel: Parallel, weights_in: str, cases: Any, tmp_path: Path
) -> None:
    case = cases[architecture, weights_in]
    source = open_source(case.folder)
    model = read_model(source, "float32")
    convert_invented(source, tmp_path / "ranks", case.quantizing, parallel)
    with read_tensors(source.weights) as reader:
        plans = find_family(source.hf_config).tensors(model)
        plans, _ = quantize(source, plans, model, case.quantizing, reader, case.out)
    files = [{n: comparable(t) for n, t in file.items()} for file in read_ranks(tmp_path / "ranks")]
    at = "transformer.layers.0.mlp."
    parts = {n: t.shape for n, t in files[0].items() if n.startswith((f"{at}fc", f"{at}proj"))}
    merged = merge(plans, model, parallel, files)
    assert not any(files), "tensors that no plan names"
    assert merged.keys() == case.tensors.keys()
    assert all(torch.equal(merged[n], comparable(t)) for n, t in case.tensors.items())
    for name, part in parts.items():
        expected, dim = list(merged[name].shape), CUT.get(name.removeprefix(at))
        if len(expected) > 1:
            expected[0] //= parallel.moe_ep_size
        if dim is not None and expected[dim] > 1:
            expected[dim] //= parallel.moe_tp_size
        assert list(part) == expected, name


def comparable(tensor: torch.Tensor) -> torch.Tensor:
    """Return e4m3 as its bytes, which torch can index."""
    return tensor.view(torch.uint8) if "float8" in str(tensor.dtype) else tensor


def test_experts_in_16_bits_are_excluded_under_the_name_of_upstreams_module(
    tmp_path: Path,
) -> None:
    plain = make_mixture(tmp_path / "plain", "MixtralForCausalLM")
    pack_model(plain, tmp_path / "model", "modelopt_fp8", r"self_attn\..*_proj.weight$")
    out = convert_invented(
        open_source(tmp_path / "model"), tmp_path / "out", Quantizing(), Parallel()
    )
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert {"transformer.layers.0.mlp", "transformer.layers.1.mlp"} <= set(
        config["exclude_modules"]
    )
    assert load_file(out / "rank0.safetensors")[f"{AT}.fc.weight"].dtype == torch.float32
    patterns = ("*lm_head", "*embedding", "*router", "*mlp")
    quantizing = Quantizing("fp8", exclude_modules=patterns)
    out = convert_invented(open_source(plain), tmp_path / "excluded", quantizing, Parallel())
    tensors = load_file(out / "rank0.safetensors")
    assert tensors[f"{AT}.fc.weight"].dtype == torch.float32
    assert tensors["transformer.layers.1.attention.qkv.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (r"(_proj|w[123]|\.gate)\.weight$", "block_sparse_moe.gate is quantised, which"),
        (r"(_proj|w[13])\.weight$", "mlp.fc.weight is quantised, its layer's other experts'"),
        (r"(_proj|0\.w[123])\.weight$", "made so from .*experts.0.w1, .* and 4 more"),
    ],
)
def test_what_upstream_cannot_mix_is_refused(which: str, said: str, tmp_path: Path) -> None:
    plain = make_mixture(tmp_path / "plain", "MixtralForCausalLM")
    pack_model(plain, tmp_path / "model", "modelopt_fp8", which)
    with pytest.raises(Unsupported, match=said):
        Conversion(open_source(tmp_path / "model"), "float32").write(tmp_path, lambda *at: None)
