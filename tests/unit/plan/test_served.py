"""Plans of `backend: llmapi`: nothing is converted, so no rule of conversion refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.families import FAMILIES
from specpipe.checkpoint.served import read_served
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.make_plan import make_plan
from specpipe.plan.plan import Plan
from specpipe.report.present_plan import plan_text
from tests.helpers.families import WORLDS, config_of, with_wrong_values

FILE = Path("config.json")
ENGINE = {"backend": "llmapi", "gpu": "H100-SXM", "dtype": "bfloat16", "max_input_len": 100,
          "max_seq_len": 200}  # fmt: skip
Plans = Callable[..., Plan]
NEW = {"architectures": ["NewForCausalLM"], "model_type": "new"}


@pytest.fixture
def planned(write_config, tiny: Path, tmp_path: Path) -> Plans:
    """Return a function that plans a copy of the tiny model with another config.json."""

    def plan(
        change: Callable[[dict[str, Any]], dict[str, Any]], size: int = 0, **engine: Any
    ) -> Plan:
        """`size`: bytes of its weights, 0 for those of the tiny model."""
        model = Path(shutil.copytree(tiny, tmp_path / "model", dirs_exist_ok=True))
        facts = json.loads((tiny / "config.json").read_text()) | {"dtype": "bfloat16"}
        facts = {k: v for k, v in facts.items() if not k.startswith("rope")}
        (model / "config.json").write_text(json.dumps(change(facts)))
        if size:
            with (model / "model.safetensors").open("wb") as file:
                file.truncate(size)  # sparse
        config = read_config(
            write_config(target={"model": str(model)}, engine={**ENGINE, **engine})
        )
        return make_plan(config, Workspace(tmp_path, config.name))

    return plan


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: {**facts, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}},
        lambda facts: {**facts, "hidden_act": "relu"},
        lambda facts: {**facts, **NEW},
        lambda facts: {**facts, **NEW, "intermediate_size": [64, 128]},
        lambda facts: {**facts, **NEW, "num_key_value_heads": [1, 2], "head_dim": None},
        lambda facts: {**NEW, "block_configs": [{"attention": {}}]},
        lambda facts: {**NEW, "text_config": facts, "vision_config": {}},
        lambda facts: {**NEW, "text_config": {**facts, **NEW}, "vision_config": {}},
        lambda facts: {**NEW, "thinker_config": {"text_config": facts}},
        lambda facts: {
            **{k: v for k, v in facts.items() if "rope" not in k}, "rope_scaling": YARN
        },
    ],
)  # fmt: skip
def test_no_rule_of_conversion_refuses(change, planned: Plans) -> None:
    assert planned(change, tp_size=1).rejections == ()


def test_an_unknown_architecture_is_never_ok_on_one_gpu(planned: Plans) -> None:
    plan = planned(lambda facts: {**facts, **NEW}, size=200 * 2**30)
    (refused,) = plan.rejections
    assert "engine.tp_size is not given, and specpipe cannot choose it" in refused.reason
    assert "NewForCausalLM" in refused.reason and refused.hint.startswith(
        "set engine.tp_size to 4 or more"
    )
    (refused,) = planned(lambda facts: {**facts, **NEW}, size=200 * 2**30, tp_size=2).rejections
    assert "the weights need 200.0 GiB on 2 x H100-SXM" in refused.reason
    plan = planned(lambda facts: {**facts, **NEW}, size=200 * 2**30, tp_size=4)
    text = plan_text(plan)
    assert plan.rejections == () and "unknown      " in text and "\nok " not in text
    assert "its weights take 200.0 GiB; whether it fits with its KV cache" in text


def test_a_text_model_within_another_is_counted_with_the_bytes_of_both(planned: Plans) -> None:
    plan = planned(lambda facts: {**NEW, "text_config": facts}, size=30 * 2**30, tp_size=1)
    assert plan.memory is not None and plan.models["target"].hidden_size == 64
    assert plan.memory.footprints["target"].weights == pytest.approx(30 * 2**30, rel=0.01)
    assert "can build this run" in plan_text(plan) and "\nok " in plan_text(plan)


@pytest.mark.parametrize("described", ["config.json", "hf_quant_config.json"])
def test_quantised_weights_are_counted_in_their_own_bytes(
    described: str, planned: Plans, tmp_path: Path
) -> None:
    size = 10 * 2**30
    if described == "config.json":
        plan = planned(lambda facts: {**facts, "quantization_config": {"bits": 4}}, size=size)
    else:
        planned(lambda facts: facts)
        (tmp_path / "model/hf_quant_config.json").write_text("{}")
        plan = planned(lambda facts: facts, size=size)
    assert plan.memory is not None
    assert plan.memory.footprints["target"].weights == pytest.approx(size, rel=0.01)


def test_float32_weights_of_an_unknown_model_are_served_in_16_bits(planned: Plans) -> None:
    wide = {**NEW, "torch_dtype": "float32"}
    plan = planned(lambda facts: {**facts, **wide, "dtype": None}, size=2**34, tp_size=1)
    assert "its weights take 8.0 GiB" in plan_text(plan)


def test_layers_for_multi_token_prediction_are_found_in_a_text_config() -> None:
    inner = {**config_of("LlamaForCausalLM"), "num_nextn_predict_layers": 2}
    found = read_served({**NEW, "text_config": inner}, "bfloat16", FILE)
    assert found.next_token_layers == 2 and not found.is_known  # its bytes are not known
    assert found.model.hidden_size == 64 and found.model.architecture == "NewForCausalLM"


@pytest.mark.parametrize("name", FAMILIES)
def test_any_value_in_an_unknown_config_is_planned(name: str) -> None:
    facts = {**config_of(name, next(iter(WORLDS[name].variants))), **NEW}
    for key, wrong in with_wrong_values(facts):
        if key not in ("architectures", "model_type"):
            assert not read_served(wrong, "bfloat16", FILE).is_known


def test_a_class_that_the_llm_api_may_lack_is_noted(planned: Plans) -> None:
    """Its sizes are known here, so nothing else would tell."""
    noted = "TensorRT-LLM's LLM API may have no class for "
    neox = config_of("GPTNeoXForCausalLM", next(iter(WORLDS["GPTNeoXForCausalLM"].variants)))
    plan = planned(lambda facts: {**neox, "vocab_size": facts["vocab_size"]}, tp_size=1)
    assert any(note.startswith(f"{noted}GPTNeoXForCausalLM: ") for note in plan.notes)
    assert not any(noted in note for note in planned(lambda facts: facts).notes)


def test_quantised_weights_that_are_not_on_this_disk_are_the_reason_and_not_the_architecture(
    write_config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As of a model whose config.json is all that the hub's cache has."""
    folder = tmp_path / "hub/models--acme--awq"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    facts = {**config_of("LlamaForCausalLM"), "quantization_config": {"quant_method": "awq"}}
    (folder / "snapshots" / ("0" * 40) / "config.json").write_text(json.dumps(facts))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = read_config(write_config(target={"model": "acme/awq"}, engine=ENGINE))
    plan = make_plan(config, Workspace(tmp_path, config.name))
    (refused,) = plan.rejections
    assert refused.reason.endswith(
        "the size of the weights of LlamaForCausalLM is not known: the files are not on this disk"
    )
    assert "specpipe does not know" not in plan_text(plan)
