"""The model repository: upstream's tensors, through Triton's own protobuf, and the golden files."""

import json
import os
from pathlib import Path

import pytest
from google.protobuf import text_format

from specpipe.config.run_config import RunConfig, read_config
from specpipe.repository.render import ServedModel, parse, render
from specpipe.repository.signature import (
    MODELS,
    Signature,
    Tensor,
    cpu_engine_signature,
    served_signature,
)
from specpipe.repository.write import RepositoryPlan, write_repository

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name: str, text: str) -> None:
    """Compare with a golden file; `UPDATE_GOLDEN=1` writes it instead."""
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text(), f"{file} differs; UPDATE_GOLDEN=1 writes it"


@pytest.fixture
def config() -> RunConfig:
    return read_config(Path("model_configs/smollm2-135m_prompt-lookup.yaml"))


@pytest.fixture
def repository(config: RunConfig, tmp_path: Path) -> Path:
    engine, tokenizer = tmp_path / "engine", tmp_path / "tokenizer"
    for folder, name in ((engine, "openvino_model.bin"), (tokenizer, "tokenizer.json")):
        folder.mkdir()
        (folder / name).write_text("bytes")
    out = tmp_path / "repository"
    out.mkdir()
    write_repository(RepositoryPlan(config, {"target": engine}, tokenizer), out)
    return out


@pytest.mark.parametrize("model", MODELS)
def test_config_pbtxt_is_the_golden_one(model: str, repository: Path) -> None:
    golden(f"{model}.config.pbtxt", (repository / model / "config.pbtxt").read_text())


@pytest.mark.parametrize("model", MODELS)
def test_config_pbtxt_reads_back_equal(model: str, repository: Path) -> None:
    config = parse((repository / model / "config.pbtxt").read_text())
    assert config.name == model and config.backend == "python"
    declared = cpu_engine_signature() if model == "tensorrt_llm" else served_signature(model)
    ours = [(t.name, f"TYPE_{t.data_type}", list(t.dims)) for t in declared.inputs]
    from tritonclient.grpc import model_config_pb2 as pb

    theirs = [(t.name, pb.DataType.Name(t.data_type), list(t.dims)) for t in config.input]
    assert ours == theirs
    assert not any("${" in p.string_value for p in config.parameters.values())


def test_the_repository_is_complete_in_itself(repository: Path) -> None:
    files = {str(f.relative_to(repository)) for f in repository.rglob("*") if f.is_file()}
    assert files == {
        *(f"{model}/config.pbtxt" for model in MODELS),
        *(f"{model}/1/model.py" for model in MODELS),
        "preprocessing/1/tokenizer/tokenizer.json",
        "tensorrt_llm/1/engines/target/openvino_model.bin",
    }


def test_only_the_front_end_follows_the_decoupled_setting(
    config: RunConfig, tmp_path: Path
) -> None:
    from dataclasses import replace

    for setting in (True, False):
        changed = replace(config, serving=replace(config.serving, decoupled=setting))
        out = tmp_path / str(setting)
        out.mkdir()
        (tmp_path / "empty").mkdir(exist_ok=True)
        write_repository(RepositoryPlan(changed, {}, tmp_path / "empty"), out)
        decoupled = {
            m: parse((out / m / "config.pbtxt").read_text()).model_transaction_policy.decoupled
            for m in MODELS
        }
        assert decoupled == {
            "ensemble": setting, "tensorrt_llm_bls": setting, "tensorrt_llm": True,
            "preprocessing": False, "postprocessing": False,
        }  # fmt: skip


def test_a_type_that_triton_lacks_is_refused_when_rendering() -> None:
    with pytest.raises(ValueError, match="TYPE_INT33"):
        render(ServedModel("m", Signature((Tensor("x", "INT33", (1,)),), ())))
    with pytest.raises(text_format.ParseError):
        parse('nmae: "m"')


def test_speculation_reaches_the_engine_as_json(repository: Path) -> None:
    config = parse((repository / "tensorrt_llm/config.pbtxt").read_text())
    options = json.loads(config.parameters["speculation"].string_value)
    assert options["method"] == "prompt_lookup" and options["num_draft_tokens"] == 4
