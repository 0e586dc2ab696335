"""What cannot be quantised is refused before anything is read, with what to change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.families import read_facts
from specpipe.checkpoint.quantize import check_calibration, check_quantization, quantizing_of
from specpipe.checkpoint.quantized import calibrate
from specpipe.checkpoint.source import known_model, open_source
from specpipe.config.run_config import EngineOptions
from specpipe.core.model import Experts, ModelConfig


@pytest.fixture
def llama() -> ModelConfig:
    """Return the facts of Llama-2-7B: widths of 4096, 12288 and 11008."""
    facts = known_model("meta-llama/Llama-2-7b-chat-hf")
    assert facts is not None
    return read_facts(facts, "bfloat16")


def reasons(model: ModelConfig, **engine: Any) -> str:
    options = EngineOptions(**{"backend": "tensorrt", "tp_size": 1, **engine})
    return " | ".join(str(r) for r in check_quantization(options, model, None))


@pytest.mark.parametrize("weights_in", ["none", "int8", "int4", "fp8", "int4_awq", "int8_sq"])
def test_llama_can_have_every_format(weights_in: str, llama: ModelConfig) -> None:
    assert reasons(llama, quantization=weights_in) == ""


def test_groups_of_int4_must_fit_every_rank(llama: ModelConfig) -> None:
    assert reasons(llama, quantization="int4_awq", tp_size=4) == ""  # 11008 = 172 * 64
    said = reasons(llama, quantization="int4_awq", tp_size=8)
    assert "divide by 64 times tp_size 8" in said and "engine.quantization: int4" in said


def test_the_tiles_of_nvfp4_must_fit_every_rank(llama: ModelConfig) -> None:
    assert reasons(llama, quantization="nvfp4", tp_size=2) == ""
    assert "divide by 128 times tp_size 4" in reasons(llama, quantization="nvfp4", tp_size=4)


def test_experts_have_the_formats_that_upstream_loads(llama: ModelConfig) -> None:
    mixture = replace(llama, moe=Experts(8, 2))
    for weights_in in ("int8", "int4", "fp8", "int4_awq"):
        assert reasons(mixture, quantization=weights_in) == ""
    said = reasons(mixture, quantization="int8_sq")
    assert "no SmoothQuant for experts" in said and "engine.quantization: fp8, or int8" in said
    said = reasons(mixture, quantization="nvfp4")
    assert "not those of stacked experts" in said and "set engine.quantization: fp8" in said


def test_groups_of_int4_must_fit_every_rank_that_shares_an_expert(llama: ModelConfig) -> None:
    mixture = replace(llama, moe=Experts(8, 2), moe_intermediate_size=1408)  # 22 * 64
    assert reasons(mixture, quantization="int4_awq", tp_size=2) == ""
    assert "1408 over 4 ranks" in reasons(mixture, quantization="int4_awq", tp_size=4)
    assert reasons(mixture, quantization="int4_awq", tp_size=4, moe_ep_size=2) == ""


def test_a_list_of_excluded_modules_must_name_what_is_never_quantised(llama: ModelConfig) -> None:
    said = reasons(llama, quantization="fp8", exclude_modules=("*attention*",))
    assert "does not name lm_head" in said and "add '*lm_head*' to the list" in said
    assert "vocab_embedding" in said
    heads = replace(llama, num_medusa_heads=2)
    listed = ("*lm_head", "*vocab_embedding")
    assert "add '*medusa_heads*'" in reasons(heads, quantization="fp8", exclude_modules=listed)


def test_layers_are_not_excluded_by_number_where_stages_count_from_zero(llama: ModelConfig) -> None:
    patterns = ("*lm_head", "*vocab_embedding", "*layers.0.*")
    engine: dict[str, Any] = {"quantization": "fp8", "exclude_modules": patterns}
    assert reasons(llama, **engine) == ""
    assert "from 0" in reasons(llama, pp_size=2, **engine)


def test_calibration_without_model_optimizer_is_a_gap_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calibrate, "PACKAGE", "a-package-that-is-not-there")
    (gap,) = check_calibration(EngineOptions("tensorrt", quantization="fp8"), [None])
    assert "Model-Optimizer, which is not installed" in gap.reason
    assert "pip install -e '.[quantize]'" in gap.hint
    assert check_calibration(EngineOptions("tensorrt", quantization="int8"), [None]) == []


def test_prompts_and_format_decide_a_quantised_checkpoint_and_nothing_a_plain_one(
    tiny: Path,
) -> None:
    def inputs(prompts: list[str], **engine: Any) -> dict[str, str]:
        quantizing = quantizing_of(EngineOptions(**{"backend": "tensorrt", **engine}), prompts)
        return Conversion(open_source(tiny), "bfloat16", None, quantizing).inputs()

    plain = Conversion(open_source(tiny), "bfloat16").inputs()
    assert inputs(["a"]) == inputs(["b"]) == plain
    assert inputs(["a"], quantization="int8") == inputs(["b"], quantization="int8") != plain
    assert inputs(["a"], quantization="fp8") != inputs(["b"], quantization="fp8")


def test_the_cpu_engine_compiles_int8_and_int4_from_the_plain_checkpoint() -> None:
    assert quantizing_of(EngineOptions("openvino", quantization="int4")).weights == "none"
    assert quantizing_of(EngineOptions("openvino", quantization="fp8")).weights == "fp8"
    assert quantizing_of(EngineOptions("tensorrt", quantization="int4")).weights == "int4"
