"""`scripts/support-table`: one row a model, and what every backend's plan answers."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.families import FAMILIES
from specpipe.checkpoint.source import known_model
from tests.helpers.families import WORLDS, config_of
from tests.helpers.tokenizer_shapes import write_json

PAGE = Path("docs/model-configs.md")
LLAMA_2 = "meta-llama/Llama-2-7b-hf"
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}


def configs() -> dict[str, dict[str, Any]]:
    """Return configs of all kinds of answers by the name of the model."""
    llama = {k: v for k, v in (known_model(LLAMA_2) or {}).items() if k != "source"}
    neox = config_of("GPTNeoXForCausalLM", next(iter(WORLDS["GPTNeoXForCausalLM"].variants)))
    return {
        LLAMA_2: llama,
        "acme/awq": {**llama, "quantization_config": AWQ},
        "acme/fp8": {**llama, "quantization_config": {"quant_method": "fp8"}},
        "acme/in-turn": {**neox, "use_parallel_residual": False, "max_position_embeddings": 2048},
        "acme/new": {"architectures": ["NewForCausalLM"], "hidden_size": 64},
        "acme/reward": {**llama, "architectures": ["LlamaForSequenceClassification"]},
    }


def write(folder: Path, models: dict[str, dict[str, Any]]) -> Path:
    for name, facts in models.items():
        place = folder / name.replace("/", "--")
        place.mkdir(parents=True)
        write_json(place / "config.json", facts)
    return folder


def run(folder: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "scripts/support-table", str(folder), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rows_of(page: str) -> dict[str, list[str]]:
    """Return the cells of every model: its architecture, and the answers."""
    found = (line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| "))
    return {cells[0]: cells[1:] for cells in found if len(cells) == 6 and "`" in cells[1]}


@pytest.mark.slow
def test_every_kind_of_answer_is_in_the_table(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    done = run(write(tmp_path / "configs", configs()), out)
    assert done.returncode == 0, done.stderr
    rows = rows_of(out.read_text(encoding="utf-8"))
    assert set(rows) == set(configs())
    assert rows[LLAMA_2] == ["`LlamaForCausalLM`", "yes", "yes", "yes", "yes"]
    assert rows["acme/awq"][1:] == ["yes, as `int4_awq`", "yes, as `int4_awq`", "yes", "yes"]
    assert rows["acme/fp8"][1:] == [
        "quantised by 'fp8', which cannot be read", "the same", "yes", "yes"
    ]  # fmt: skip
    assert rows["acme/in-turn"][1] == "yes" and "TensorRT-LLM's GPTNeoX" in rows["acme/in-turn"][2]
    assert rows["acme/new"][1:] == ["no converter", "no converter", "not known", "not known"]
    assert rows["acme/reward"][1].startswith("LlamaForSequenceClassification generates no text")
    assert rows["acme/reward"][2:] == ["the same", "the same", "the same"]
    text = out.read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "6 public models of 4 architectures" in text


@pytest.mark.slow
def test_a_config_that_the_built_in_table_has_otherwise_is_named(tmp_path: Path) -> None:
    changed = {**configs()[LLAMA_2], "rms_norm_eps": 1e-6, "num_nextn_predict_layers": 2}
    done = run(write(tmp_path / "configs", {LLAMA_2: changed}), tmp_path / "page.md")
    assert done.returncode == 1
    assert f"{LLAMA_2}: norm_epsilon is 1e-06, and 1e-05 in known_models.json" in done.stderr
    assert f"{LLAMA_2}: num_nextn_predict_layers is 2, and 0 in" in done.stderr


def test_a_folder_without_configs_is_a_usage_error(tmp_path: Path) -> None:
    done = run(tmp_path, tmp_path / "page.md")
    assert done.returncode == 2 and "has no folder with a config.json" in done.stderr


def test_the_committed_page_has_150_models_and_no_path_of_a_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = rows_of(text)
    assert len(rows) >= 150 and f"{len(rows)} public models" in text
    assert f"{len(rows)} public models" in Path("docs/conversion.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w`])/(?:tmp|work|home|root)/", text)


@pytest.mark.parametrize("column", [1, 2])
def test_the_committed_page_accepts_only_families_that_are_read(column: int) -> None:
    rows = rows_of(PAGE.read_text(encoding="utf-8")).values()
    taken = {cells[0].strip("`") for cells in rows if cells[column].startswith("yes")}
    assert taken and taken <= set(FAMILIES)


def test_every_well_known_model_names_what_it_was_compared_with() -> None:
    known = json.loads(Path("pipeline/specpipe/checkpoint/known_models.json").read_text())
    assert all(facts["source"] for facts in known.values())
    compared = [name for name, facts in known.items() if facts["source"] == "as config.json"]
    assert f"Of its {len(known)} models, {len(compared)} have a copy" in Path(
        "docs/conversion.md"
    ).read_text(encoding="utf-8")
    assert set(compared) <= set(rows_of(PAGE.read_text(encoding="utf-8")))
