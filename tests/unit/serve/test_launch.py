"""Starting Triton for GPUs: the command lines of NVIDIA's launcher, with mock executables."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError, Unsupported
from specpipe.repository.placement import (
    Placement,
    place,
    read_placement,
    write_placement,
)
from specpipe.repository.render import ServedModel, parse, render
from specpipe.repository.signature import Signature
from specpipe.repository.tokenizer_info import INFO, INFO_PATH
from specpipe.serve.address import Address, free_address
from specpipe.serve.launch import environment, launch_command, write_view
from specpipe.serve.tritonserver import start_server

STANDINS = Path(__file__).parents[2] / "standins"
ADDRESS = Address("127.0.0.1", 1, 2, 3)
SERVER, REPOSITORY = Path("/opt/tritonserver/bin/tritonserver"), Path("/repository")
FLAGS = (
    "--model-repository=/repository",
    "--http-address=127.0.0.1",
    "--grpc-address=127.0.0.1",
    "--metrics-address=127.0.0.1",
    "--http-port=2",
    "--grpc-port=1",
    "--metrics-port=3",
    "--disable-auto-complete-config",
    "--exit-timeout-secs=5",
)
ONE = place({"target": 1}, release="1.2.1")


def command(placement: Placement) -> tuple[str, ...]:
    return launch_command(SERVER, REPOSITORY, placement, ADDRESS.flags(), "r")


def shm(rank: int) -> str:
    return f"--backend-config=python,shm-region-prefix-name=r{rank}_"


def test_engines_of_one_rank_need_one_process() -> None:
    assert command(ONE) == (str(SERVER), *FLAGS, shm(0))
    both = place({"target": 1, "draft": 1}, release="1.2.1")
    assert command(both) == command(ONE) and environment(both) == ()


def test_an_engine_of_two_ranks_has_a_leader_and_a_worker() -> None:
    assert command(place({"target": 2}, release="1.2.1")) == (
        "mpirun", "--allow-run-as-root",
        "-n", "1", str(SERVER), *FLAGS, shm(0),
        ":", "-n", "1", str(SERVER), *FLAGS, shm(1),
        "--model-control-mode=explicit", "--load-model=tensorrt_llm",
    )  # fmt: skip


def test_two_engines_of_two_ranks_have_an_orchestrator_that_spawns() -> None:
    placement = place({"target": 2, "draft": 2}, release="1.2.1")
    assert command(placement) == (
        "mpirun", "--allow-run-as-root", "-n", "1", str(SERVER), *FLAGS, shm(0),
        "--pinned-memory-pool-byte-size=0", "--enable-peer-access=false",
        "--cuda-memory-pool-byte-size=0:0", "--cuda-memory-pool-byte-size=1:0",
    )  # fmt: skip
    assert dict(environment(placement)) == {
        "TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1",
    }  # fmt: skip


def test_workers_that_are_not_spawned_are_started_by_mpirun() -> None:
    placement = place({"target": 2, "draft": 1}, spawns=False, release="1.2.1")
    line = command(placement)
    assert line.count("-n") == 4  # the orchestrator, one of the draft, two of the target
    assert line.count("--load-model=tensorrt_llm_draft") == 3
    assert not any("pinned" in word for word in line)
    assert dict(environment(placement))["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "0"


def test_a_placement_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_placement(tmp_path) is None
    placement = place({"target": 2, "draft": 2}, release="0.18.2")
    write_placement(placement, tmp_path)
    assert read_placement(tmp_path) == placement
    for damage in ("{", "[]", '{"models": []}'):
        (tmp_path / "launch.json").write_text(damage)
        with pytest.raises(ConfigError, match="launch.json is damaged"):
            read_placement(tmp_path)


def repository(
    folder: Path, placement: Placement, home: Path | None = None, *, guides: bool = False
) -> Path:
    """Write as much of a repository as starting a server looks at, to be served from `home`."""
    for name in (*placement.models, "ensemble"):
        (folder / name / "1" / "target").mkdir(parents=True)
        engine = str((home or folder) / name / "1" / "target")
        info = str(Path(engine).with_name(INFO)) if guides else ""
        parameters = {"gpt_model_path": engine, INFO_PATH: info} if name != "ensemble" else {}
        model = ServedModel(name, Signature((), ()), parameters, "tensorrtllm")
        (folder / name / "config.pbtxt").write_text(render(model))
    write_placement(placement, folder)
    return folder


def test_a_repository_that_lies_where_it_was_made_for_is_served_as_it_is(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", ONE)
    assert write_view(folder, ONE, tmp_path / "view") == folder
    assert not (tmp_path / "view").exists()


@pytest.mark.parametrize("guides", [False, True])
def test_a_repository_that_was_moved_is_served_through_a_view(guides: bool, tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", ONE, Path("/elsewhere"), guides=guides)
    view = write_view(folder, ONE, tmp_path / "view")
    config = parse((view / "tensorrt_llm/config.pbtxt").read_text())
    engine = Path(config.parameters["gpt_model_path"].string_value)
    assert engine == folder / "tensorrt_llm/1/target" and engine.is_dir()
    info = config.parameters[INFO_PATH].string_value
    assert info == (str(folder / "tensorrt_llm/1" / INFO) if guides else "")
    assert (view / "ensemble/1").resolve() == folder / "ensemble/1"
    assert (view / "ensemble/config.pbtxt").read_text() == (
        folder / "ensemble/config.pbtxt"
    ).read_text()


def test_an_engine_that_was_not_copied_is_missed_before_the_start(tmp_path: Path) -> None:
    folder = repository(tmp_path / "r", ONE, Path("/elsewhere"))
    (folder / "tensorrt_llm/1/target").rmdir()
    with pytest.raises(ConfigError, match="names the engine /elsewhere/tensorrt_llm/1/target"):
        write_view(folder, ONE, tmp_path / "view")


@pytest.fixture
def container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make this machine look like upstream's container with two GPUs; return its notes' folder."""
    notes = tmp_path / "notes"
    notes.mkdir()
    path = f"{STANDINS}:{STANDINS}/triton/bin:/usr/bin:/bin"
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{path}")
    monkeypatch.setenv("STANDIN_NOTES", str(notes))
    monkeypatch.setenv("STANDIN_GPUS", "\n".join(["NVIDIA H100 80GB HBM3, 9.0, 81559, 550.1"] * 2))
    return notes


def start(folder: Path, tmp_path: Path) -> None:
    with start_server(folder, free_address(), tmp_path / "log", timeout_s=30) as endpoint:
        assert endpoint.is_alive()


@pytest.mark.parametrize("ranks", [{"target": 1}, {"target": 2}, {"target": 2, "draft": 2}])
def test_every_rank_is_started_and_none_is_left(
    ranks: dict, container: Path, tmp_path: Path
) -> None:
    placement = place(ranks, release="1.2.1")
    folder = repository(tmp_path / "r", placement)
    start(folder, tmp_path)
    notes = [json.loads(file.read_text()) for file in sorted(container.iterdir())]
    assert len(notes) == placement.world_size
    for rank, note in enumerate(notes):
        assert f"--model-repository={folder}" in note["argv"]
        assert ("--model-control-mode=explicit" in note["argv"]) == (rank > 0)
        assert note["env"] == dict(environment(placement))


def test_too_few_gpus_are_counted(container: Path, tmp_path: Path) -> None:
    placement = place({"target": 4}, release="1.2.1")
    folder = repository(tmp_path / "r", placement)
    with pytest.raises(ConfigError, match="needs 4 GPUs, and this machine has 2"):
        start(folder, tmp_path)
    assert not list(container.iterdir())


def test_a_machine_without_a_gpu_refuses_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    folder = repository(tmp_path / "r", ONE)
    with pytest.raises(Unsupported, match="this machine has no NVIDIA GPU") as caught:
        start(folder, tmp_path)
    assert "TensorRT-LLM 1.2.1" in str(caught.value)
    assert not (tmp_path / "log").exists()


def test_a_triton_without_the_backend_is_refused(
    container: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", f"{STANDINS}:/usr/bin:/bin")
    folder = repository(tmp_path / "r", replace(ONE))
    with pytest.raises(Unsupported, match="Triton's backend is not here"):
        start(folder, tmp_path)
