"""Plans of runs on vLLM: chains, folders of drafters, and what only a plan can refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.plan import Plan
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.eagle3 import make_eagle3
from tests.helpers.gpu_configs import EAGLE, MEDUSA, changed, plan_of

VLLM: dict[str, Any] = {"engine.backend": "vllm", "engine.tensorrt_llm": None}


def speculation(plan: Plan) -> dict[str, Any]:
    (text,) = (text for name, text in plan.files.items() if name.endswith(".json"))
    argv = json.loads(text)["argv"]
    found: dict[str, Any] = json.loads(argv[argv.index("--speculative-config") + 1])
    return found


def test_heads_draft_a_chain_and_get_a_folder(tmp_path: Path) -> None:
    plan = plan_of(changed(MEDUSA, VLLM, tmp_path))
    found = speculation(plan)
    assert plan.rejections == () and found["method"] == "medusa"
    assert found["num_speculative_tokens"] == plan.models["target"].num_medusa_heads
    assert found["model"].endswith("checkpoints/draft")


def test_eagle_drafts_a_chain_of_its_levels(tmp_path: Path) -> None:
    plan = plan_of(changed(EAGLE, VLLM, tmp_path))
    found = speculation(plan)
    assert plan.rejections == () and found["method"] == "eagle"
    assert found["num_speculative_tokens"] == 4 == plan.config.speculation.num_draft_tokens


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"serving.front": "dynamo"}, "does not serve backend vllm"),
        ({"serving.decoupled": False}, "serving.decoupled is a key of Triton"),
        ({"speculation.tree": [[0], [1]], "speculation.num_draft_tokens": None}, "drafts chains"),
    ],
)
def test_what_vllm_does_not_have_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = plan_of(changed(MEDUSA, VLLM | changes, tmp_path)).rejections
    assert any(reason in r.reason for r in found), found


def test_another_backend_has_no_vllm_serve(tmp_path: Path) -> None:
    found = plan_of(changed(MEDUSA, {"serving.front": "vllm_serve"}, tmp_path)).rejections
    assert any("serving.front is vllm_serve" in r.reason for r in found), found


def run_of(tiny: Path, folder: Path, **speculation: Any) -> Run:
    values = {
        "name": "api", "target": {"model": str(tiny)}, "speculation": speculation,
        "engine": {"backend": "vllm", "max_input_len": 100, "max_seq_len": 200},
    }  # fmt: skip
    file = folder / "run.yaml"
    file.write_text(json.dumps(values))
    config = read_config(file)
    return Run(config, Workspace(folder, config.name))


def test_a_build_converts_heads_and_skips_what_is_up_to_date(tiny: Path, tmp_path: Path) -> None:
    model = load_file(tiny / "model.safetensors")
    hidden = model["model.embed_tokens.weight"].shape[1]
    square = model["model.embed_tokens.weight"].new_zeros(hidden, hidden)
    heads = tmp_path / "heads"
    heads.mkdir()
    save_file(
        {"0.0.linear.weight": square, "0.0.linear.bias": square[0].clone()},
        heads / "medusa_lm_head.safetensors",
    )
    run = run_of(tiny, tmp_path, method="medusa", heads=str(heads))
    assert [r.stage for r in build(run)] == ["convert", "compile", "package"]
    folder = Path(speculation(run.plan)["model"])
    assert {file.name for file in folder.iterdir()} >= {"config.json", "model.safetensors"}
    again = run_of(tiny, tmp_path, method="medusa", heads=str(heads))
    assert all(result.fresh for result in build(again))


@pytest.mark.parametrize(("ranks", "refused"), [(3, True), (1, False)])
def test_ranks_must_divide_the_drafters_vocabulary(
    ranks: int, refused: bool, tiny: Path, tmp_path: Path
) -> None:
    """vLLM pads no draft vocabulary: it ends with an AssertionError while it loads the drafter."""
    drafter = make_eagle3(tmp_path / "drafter")
    run = run_of(tiny, tmp_path, method="eagle3", draft={"model": str(drafter)})
    config = replace(run.config, engine=replace(run.config.engine, tp_size=ranks))
    reasons = [r.reason for r in run.variant(config).plan.rejections]
    assert any("does not pad to engine.tp_size" in reason for reason in reasons) == refused
