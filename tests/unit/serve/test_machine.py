"""Engines are refused on machines that they were not built for, before a server is started."""

import json
import re
from pathlib import Path

import pytest

from specpipe.core.artifacts import Artifact, Manifest
from specpipe.core.errors import Unsupported
from specpipe.core.publishing import write_publish
from specpipe.engine.tensorrt.machine import FoundGpu
from specpipe.serve.address import Address
from specpipe.serve.machine import check_engine, find_engines, require_same_machine
from specpipe.serve.tritonserver import start_server

H100 = FoundGpu("NVIDIA H100 80GB HBM3", 90, 81559, "550")
INPUTS = {"tensorrt_llm": "1.2.1", "container": "nvcr.io/x:26.04"}


def engine(ranks: int = 1) -> Artifact:
    files = {f"rank{rank}.engine": 10 for rank in range(ranks)}
    return Artifact(
        Path("tensorrt_llm/1/engine"),
        Manifest("engine", INPUTS, {"sm": 90, "gpu": H100.name}, files),
    )


def test_an_engine_runs_where_it_was_built() -> None:
    assert check_engine(engine(), [H100], "1.2.1") == []
    assert check_engine(engine(2), [H100, H100], None) == []


@pytest.mark.parametrize(
    ("gpus", "release", "words"),
    [
        (
            [],
            None,
            "the engine of tensorrt_llm needs 2 NVIDIA H100 80GB HBM3, and nvidia-smi",
        ),
        ([FoundGpu("NVIDIA A10", 86, 1, "5")] * 2, None, r"\(SM 90\), this machine has NVIDIA A10"),
        ([H100], None, "has 2 ranks, this machine 1 GPUs"),
        (
            [H100] * 2,
            "1.1.0",
            "TensorRT-LLM 1.2.1, 1.1.0 is installed; serve it in nvcr.io/x:26.04",
        ),
    ],
)
def test_every_reason_against_a_machine_is_a_sentence(gpus, release, words: str) -> None:
    (rejection,) = check_engine(engine(2), gpus, release)
    assert re.search(words, str(rejection))


def repository(folder: Path, facts: dict) -> Path:
    place = folder / "tensorrt_llm/1"
    temporary = place / ".target.tmp"
    temporary.mkdir(parents=True)
    (temporary / "rank0.engine").write_text("x")
    write_publish(temporary, place / "target", Manifest("engine", INPUTS, facts))
    return folder


def test_a_repository_is_refused_before_the_server_starts(tmp_path: Path) -> None:
    folder = repository(tmp_path / "repo", {"sm": 90, "gpu": H100.name})
    (folder / "tensorrt_llm/config.pbtxt").touch()
    assert [artifact.path.name for artifact in find_engines(folder)] == ["target"]
    with pytest.raises(Unsupported, match="cannot be served here(.|\n)*finds no GPU"):
        with start_server(folder, Address(), tmp_path / "log"):
            pass
    assert not (tmp_path / "log").exists()


def test_engines_for_any_machine_are_not_asked_for_a_gpu(tmp_path: Path) -> None:
    require_same_machine(repository(tmp_path / "repo", {}))
    assert json.loads((tmp_path / "repo/tensorrt_llm/1/target/specpipe.json").read_text())
