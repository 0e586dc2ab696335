"""EAGLE-3 drafters: known in both layouts, whatever the method, and every part is checked."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from specpipe.checkpoint.convert import Conversion
from specpipe.checkpoint.drafter_method import drafter_method
from specpipe.checkpoint.eagle import open_eagle
from specpipe.checkpoint.eagle3 import open_eagle3
from specpipe.checkpoint.eagle3_format import usual_layers
from specpipe.checkpoint.inspection.describe import inspection_text
from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.checkpoint.medusa import open_heads
from specpipe.checkpoint.redrafter import open_redrafter
from specpipe.checkpoint.source import open_source
from specpipe.config.run_config import read_config
from specpipe.config.speculation import ReDrafter
from specpipe.config.upstream_methods import Eagle
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.plan.make_plan import make_plan
from tests.helpers.eagle3 import IDS, make_eagle3

LAYOUTS = ("layers.0", "midlayer")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_known_whatever_the_method(layout: str, tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path / "drafter", layout)
    words = "an EAGLE-3 drafter, not(.|\n)*method: eagle3"
    with pytest.raises(Unsupported, match=words):
        open_heads(folder)
    with pytest.raises(Unsupported, match=words):
        open_eagle(folder, Eagle("eagle", ""), "float16")
    with pytest.raises(Unsupported, match=words):
        open_redrafter(folder, ReDrafter("redrafter", ""), release="")


def test_it_is_known_by_its_config_if_its_names_are_an_eagles(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"speculators_model_type": "eagle3"}))
    assert drafter_method(tmp_path, {"fc.weight", "layers.0.mlp.up_proj.weight"}) == "eagle3"


def eagle3_plan(
    write_config: Callable[..., Path], tmp_path: Path, model: str, backend: str = "llmapi"
) -> Any:
    engine = {"backend": backend, "max_input_len": 100, "max_seq_len": 200}
    if backend == "llmapi":
        engine |= {"gpu": "H100-SXM", "dtype": "bfloat16"}
    speculation = {"method": "eagle3", "draft": {"model": model}}
    path = write_config(engine=engine, speculation=speculation)
    return make_plan(read_config(path), Workspace(tmp_path, "tiny"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["llmapi", "openvino", "vllm"])
def test_a_fitting_drafter_is_planned(
    layout: str, backend: str, write_config, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path / "drafter", layout)
    plan = eagle3_plan(write_config, tmp_path, str(folder), backend)
    assert not plan.rejections


FIRST = torch.tensor([0])
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocab_size": 300}, "a vocabulary of 300, the target has 320"),
    "hidden size": ({"hidden_size": 32}, "hidden size of 32 is not the target's, 64"),
    "layers": (
        {"eagle_aux_hidden_state_layer_ids": [1, 5]},
        "reads the input of layer 5, the target's layers are 0 to 1",
    ),
    "fewer layers": (
        {"eagle_aux_hidden_state_layer_ids": [1]},
        "fc.weight reads 128 values, which are not 1 hidden states",
    ),
    "lost tensor": (
        {"without": ["layers.0.hidden_norm.weight"]}, "lacks layers.0.hidden_norm.weight",
    ),
    "strange tensor": (
        {"tensors": {"layers.1.mlp.up_proj.weight": FIRST}}, "layers.1.mlp.up_proj.weight: an",
    ),
    "wrong shape": (
        {"tensors": {"norm.weight": torch.ones(63)}}, r"norm.weight has shape \[63\], by config",
    ),
    "other count": ({"tensors": {"d2t": torch.zeros(90).long()}}, "draft_vocab_size is 100, the"),
    "no map": ({"own": ("lm_head.weight",)}, "has 100 of 320 tokens, and no d2t"),
    "out of bounds": (
        {"tensors": {"d2t": torch.full((100,), 230)}}, "d2t leads draft token 90 to 320",
    ),
    "negative": ({"tensors": {"d2t": torch.full((100,), -1)}}, "d2t leads draft token 0 to -1"),
    "twice": (
        {"tensors": {"d2t": -torch.arange(100)}}, "d2t leads 100 draft tokens to 1 ids: some twice",
    ),
    "marks": (
        {"tensors": {"t2d": torch.ones(320, dtype=torch.bool)}}, "t2d marks 320 tokens, d2t has 100"
    ),
    "other marks": (
        {"tensors": {"d2t": torch.zeros(100).long()}}, "t2d marks other tokens than those of d2t",
    ),
    "marks of another": (
        {"tensors": {"t2d": torch.ones(9, dtype=torch.bool)}}, "t2d has a vocabulary of 9",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("backend", ["llmapi", "openvino", "vllm"])
def test_a_drafter_that_does_not_fit_is_refused(
    name: str, backend: str, write_config, tmp_path: Path
) -> None:
    changes, words = MISFITS[name]
    folder = make_eagle3(tmp_path / "drafter", **changes)
    plan = eagle3_plan(write_config, tmp_path, str(folder), backend)
    assert any(re.search(words, str(reason)) for reason in plan.rejections), plan.rejections


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm_before_residual": None}, "config.json has no norm_before_residual: vLLM then"),
        ({"norm_before_fc": True}, "norm_before_fc is true, which the CPU engine does not compute"),
        ({"fc_norm": True}, "fc_norm is true"),
    ],
)
def test_the_cpu_engine_refuses_what_it_does_not_compute(
    changes: dict[str, Any], words: str, write_config, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path / "drafter", **changes)
    for backend in ("openvino", "llmapi"):
        plan = eagle3_plan(write_config, tmp_path, str(folder), backend)
        assert any(words in str(reason) for reason in plan.rejections) == (backend == "openvino")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2}, "the drafter has 2 layers"),
        ({"model_type": "qwen3"}, "describes a drafter with a layer of 'qwen3'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_a_drafter_of_other_layers_is_refused(
    changes: dict[str, Any], words: str, write_config, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path / "drafter", **changes)
    with pytest.raises(Unsupported, match=words):
        eagle3_plan(write_config, tmp_path, str(folder), "openvino")


def test_the_usual_layers_are_second_middle_and_third_from_the_end() -> None:
    assert usual_layers(30) == (2, 15, 27) and usual_layers(4) == (1, 2)


def test_the_home_folder_is_expanded(
    write_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_eagle3(tmp_path / "drafter", "midlayer")
    plan = eagle3_plan(write_config, tmp_path, "~/drafter")
    assert plan.requests["target"].sources["draft"] == str(folder)
    assert not plan.rejections


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("~/nothing", ConfigError, "'speculation.draft.model' is '~/nothing': no such folder"),
        ("./nothing", ConfigError, "no such folder"),
        ("TINY", ConfigError, "no EAGLE-3 drafter"),
    ],
)
def test_a_folder_without_one_is_named(
    model: str, error: type[Exception], words: str, write_config, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        eagle3_plan(write_config, tmp_path, model.replace("TINY", str(tiny)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspect_describes_a_drafter_and_names_its_defects(layout: str, tmp_path: Path) -> None:
    found = inspect_folder(make_eagle3(tmp_path / "whole", layout))
    text = inspection_text(found)
    assert not found.defects and "kind       EAGLE-3 drafter" in text
    assert "an EAGLE-3 drafter of 100 tokens from the inputs of layers 0, 1" in text
    broken = make_eagle3(tmp_path / "broken", layout, without=["norm.weight"])
    assert "lacks norm.weight" in str(inspect_folder(broken).defects[0])


def test_inspect_compares_a_target_with_its_drafter(tiny: Path, tmp_path: Path) -> None:
    drafter = open_eagle3(make_eagle3(tmp_path / "drafter"))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    Conversion(open_source(tiny), "bfloat16", drafter).write(checkpoint, lambda done, total: None)
    found = inspect_folder(checkpoint)
    assert not found.defects and found.speculation.eagle3_layer_ids == IDS
    config = json.loads((checkpoint / "config.json").read_text())
    config["eagle3"]["draft_vocab_size"] = 99
    (checkpoint / "config.json").write_text(json.dumps(config))
    words = "eagle3.lm_head.weight is 100 x 64, must be 99 x 64"
    assert any(words in str(defect) for defect in inspect_folder(checkpoint).defects)


def test_the_cpu_engine_needs_a_folder(write_config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'some/drafter'(.|\n)*download some/drafter and give"):
        eagle3_plan(write_config, tmp_path, "some/drafter", "openvino")
