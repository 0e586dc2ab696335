"""SmolLM2 on vLLM's CPU build: build, serve and validate, in float32, for every method that it has.

Not part of scripts/test: SPECPIPE_VLLM=.venv-vllm pytest -m vllm tests/e2e/test_vllm.py
"""

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

from specpipe.checkpoint.eagle3_format import NewEagle3, speculators_config, usual_layers
from specpipe.cli import main
from specpipe.engine.vllm.releases import default_release
from specpipe.serve.front_server import ENVIRONMENT
from specpipe.train.eagle3 import write_drafter
from specpipe.train.layer_net import Eagle3Net
from specpipe.train.target import load_target

FOLDER = os.environ.get(ENVIRONMENT)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(FOLDER is None, reason=f"{ENVIRONMENT} names no environment with vLLM"),
]
MODELS = Path("~/.cache/specpipe/models").expanduser()
TARGET = MODELS / "SmolLM2-135M-Instruct"
HEADS = Path("model_configs/heads").resolve()
SPECULATION: dict[str, dict[str, Any]] = {
    "none": {},
    "prompt_lookup": {"num_draft_tokens": 4},
    "draft_model": {"draft": {"model": str(MODELS / "SmolLM2-135M-pruned")}, "num_draft_tokens": 3},
    "medusa": {"heads": str(HEADS / "smollm2-135m"), "num_draft_tokens": 4},
    "eagle3": {"draft": {"model": str(HEADS / "smollm2-135m_eagle3")}, "num_draft_tokens": 3},
}


DRAFTED = 4096  # tokens that the random drafter can draft


def config_of(method: str, folder: Path, **drafter: Any) -> Path:
    values = {
        "name": f"smollm2_{method}_vllm",
        "target": {"model": str(TARGET)},
        "speculation": {"method": method, **SPECULATION[method], **drafter},
        "engine": {"backend": "vllm", "dtype": "float32", "max_input_len": 1024},
        "validate": {"num_prompts": 8, "max_tokens": 48, "gates": {"exact_match": 1.0}},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def validated(config: Path, folder: Path) -> dict[str, Any]:
    """Build and validate a run; return the metrics of its report."""
    for command in ("build", "validate"):
        options = ("--config", str(config), "--workspace", str(folder))
        done = CliRunner().invoke(main, [command, *options])
        assert done.exit_code == 0, done.output
    (report,) = (folder / "reports").glob("*/report.json")
    metrics: dict[str, Any] = json.loads(report.read_text())["metrics"]
    return metrics


def random_eagle3(folder: Path) -> Path:
    """Write an untrained drafter for the target, as `train eagle3` writes a trained one."""
    target = load_target(TARGET, "float32", folder.with_suffix(".digests"))
    known = target.model.config.to_dict()
    new = NewEagle3(DRAFTED, usual_layers(known["num_hidden_layers"]), 3, "float32")
    config, ids = speculators_config(new, known, str(TARGET)), torch.arange(DRAFTED)
    folder.mkdir()
    net = Eagle3Net(config, target.embedding, target.output[ids], None, seed=1)
    write_drafter(net, config, ids, target, folder)
    return folder


@pytest.mark.parametrize("method", SPECULATION)
def test_answers_are_those_of_transformers(method: str, tmp_path: Path) -> None:
    if method == "eagle3" and not (HEADS / "smollm2-135m_eagle3").is_dir():
        pytest.skip("no EAGLE-3 drafter is shipped")
    found = validated(config_of(method, tmp_path), tmp_path)
    arm = "plain" if method == "none" else "speculative"
    assert found["exact_match"]["arms"][arm]["median"] == 1.0
    if method != "none":
        assert found["acceptance_length"]["arms"][arm]["median"] > 1.0


def test_answers_do_not_depend_on_the_weights_of_an_eagle3_drafter(tmp_path: Path) -> None:
    drafter = random_eagle3(tmp_path / "drafter")
    found = validated(config_of("eagle3", tmp_path, draft={"model": str(drafter)}), tmp_path)
    assert found["exact_match"]["arms"]["speculative"]["median"] == 1.0
    assert found["acceptance_length"]["arms"]["speculative"]["median"] >= 1.0  # it did draft


def test_the_table_has_the_fields_of_the_installed_release() -> None:
    """The fields that vLLM fills in itself are those of a config, and one is always refused."""
    program = (
        "import dataclasses; from vllm.config.speculative import SpeculativeConfig as C; "
        "print([f.name for f in dataclasses.fields(C)])"
    )
    python = Path(str(FOLDER)).expanduser().absolute() / "bin/python"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    fields = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    own = {name for name in fields if name.endswith("_config") and name != "draft_load_config"}
    assert fields - own - {"tensor_parallel_size"} == default_release().speculative_fields
