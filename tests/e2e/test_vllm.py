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
import yaml
from click.testing import CliRunner

from specpipe.cli import main
from specpipe.engine.vllm.releases import default_release
from specpipe.serve.front_server import ENVIRONMENT

FOLDER = os.environ.get(ENVIRONMENT)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(FOLDER is None, reason=f"{ENVIRONMENT} names no environment with vLLM"),
]
MODELS = Path("~/.cache/specpipe/models").expanduser()
HEADS = Path("model_configs/heads").resolve()
SPECULATION: dict[str, dict[str, Any]] = {
    "none": {},
    "prompt_lookup": {"num_draft_tokens": 4},
    "draft_model": {"draft": {"model": str(MODELS / "SmolLM2-135M-pruned")}, "num_draft_tokens": 3},
    "medusa": {"heads": str(HEADS / "smollm2-135m"), "num_draft_tokens": 4},
    "eagle3": {"draft": {"model": str(HEADS / "smollm2-135m_eagle3")}, "num_draft_tokens": 3},
}


def config_of(method: str, folder: Path) -> Path:
    values = {
        "name": f"smollm2_{method}_vllm",
        "target": {"model": str(MODELS / "SmolLM2-135M-Instruct")},
        "speculation": {"method": method, **SPECULATION[method]},
        "engine": {"backend": "vllm", "dtype": "float32", "max_input_len": 1024},
        "validate": {"num_prompts": 8, "max_tokens": 48, "gates": {"exact_match": 1.0}},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.parametrize("method", SPECULATION)
def test_answers_are_those_of_transformers(method: str, tmp_path: Path) -> None:
    if method == "eagle3" and not (HEADS / "smollm2-135m_eagle3").is_dir():
        pytest.skip("no EAGLE-3 drafter is shipped")
    options = ("--config", str(config_of(method, tmp_path)), "--workspace", str(tmp_path))
    for command in ("build", "validate"):
        done = CliRunner().invoke(main, [command, *options])
        assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / f"reports/smollm2_{method}_vllm/report.json").read_text())
    arm = "plain" if method == "none" else "speculative"
    assert report["metrics"]["exact_match"]["arms"][arm]["median"] == 1.0
    if method != "none":
        assert report["metrics"]["acceptance_length"]["arms"][arm]["median"] > 1.0


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
