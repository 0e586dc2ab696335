"""`doctor`: one machine, many runs; every verdict is a pure function of what was found."""

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from specpipe.config.backends import BACKENDS
from specpipe.config.run_config import EngineOptions, read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.machine import cpu_kinds, emulates_bfloat16
from specpipe.doctor.checks import Needs, examine, judge, needs_of
from specpipe.doctor.inventory import ContainerRuntime, Machine, find_container_runtime, look
from specpipe.engine.tensorrt.machine import FoundGpu
from specpipe.engine.tensorrt.profiles import DEFAULT
from specpipe.plan.make_plan import make_plan
from specpipe.plan.outlook import cpu_notes
from specpipe.run.run import Run

H100 = FoundGpu("NVIDIA H100 80GB HBM3", 90, 81559, "580.65.06")
PACKAGES = {"torch": "2.10", "numpy": "1.26.4", "openvino": None, "nvidia-pytriton": None}
GOOD = Machine(
    python=(3, 12, 3), packages=PACKAGES, server="/opt/tritonserver", cpus=64,
    cpu_kinds=("avx2",), memory_bytes=2**40, shared_memory_bytes=2**33, disk_bytes=10**12,
    busy_ports=(), gpus=(H100,) * 4, runtime=ContainerRuntime("docker", True, True),
    compiler=Path("/usr/bin/trtllm-build"), compiler_versions={"tensorrt_llm": "1.2.1"},
    programs={},
)  # fmt: skip
NEEDS = Needs(BACKENDS["tensorrt"], "H100-SXM", ranks=4, disk_bytes=3 * 10**11, profile=DEFAULT)


def problems(machine: Machine, needs: Needs | None) -> dict[str, str]:
    return {f.name: f.problem for f in judge(machine, needs) if f.problem}


def changed(**fields: object) -> Machine:
    return dataclasses.replace(GOOD, **fields)


def test_a_machine_with_everything_has_no_problem() -> None:
    assert problems(GOOD, NEEDS) == {}
    assert problems(GOOD, None) == {}


@pytest.mark.parametrize(
    ("machine", "name", "words"),
    [
        (changed(gpus=()), "gpu", "needs 4 x H100-SXM, but nvidia-smi finds no GPU"),
        (changed(gpus=(H100,)), "gpu", "needs 4 x H100-SXM: lower engine.tp_size"),
        (changed(gpus=(FoundGpu("NVIDIA L4", 89, 23034, "580.1"),) * 4), "gpu",
         "for H100-SXM (SM 90): change engine.gpu"),
        (changed(gpus=(dataclasses.replace(H100, driver="550.54"),) * 4), "driver",
         "needs driver 580 or newer"),
        (changed(disk_bytes=10**10), "disk", "may take 279.4 GiB"),
        (changed(busy_ports=(8001,)), "ports 8000 to 8002", "--grpc-port"),
        (changed(shared_memory_bytes=2**26), "/dev/shm", "--shm-size=2g"),
        (changed(compiler_versions={"tensorrt_llm": "1.1.0"}), "trtllm-build", "--in-container"),
        (changed(compiler=None, runtime=None), "containers", "install docker and NVIDIA's"),
        (
            changed(compiler=None, runtime=ContainerRuntime("docker", False, False)),
            "containers", "daemon",
        ),
        (
            changed(compiler=None, runtime=ContainerRuntime("docker", True, False)),
            "containers", "nvidia-ct",
        ),
        (changed(server=None), "tritonserver", "specpipe package --deploy"),
        (changed(python=(3, 9, 1)), "python", "3.10 to 3.13"),
        (changed(packages={**PACKAGES, "torch": None}), "torch", "pip install torch"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_what_to_do(machine: Machine, name: str, words: str) -> None:
    found = problems(machine, NEEDS)
    assert list(found) == [name] and words in found[name]


def test_either_way_to_compile_will_do() -> None:
    assert problems(changed(runtime=None), NEEDS) == {}
    assert problems(changed(compiler=None), NEEDS) == {}


def test_a_cpu_run_asks_for_other_things() -> None:
    needs = Needs(BACKENDS["openvino"])
    bare = changed(gpus=(), runtime=None, compiler=None, server=None,
                   packages={**PACKAGES, "numpy": "2.4.0"})  # fmt: skip
    found = problems(bare, needs)
    assert set(found) == {
        "openvino", "nvidia-pytriton", "tritonserver", "numpy for Triton's Python backend",
    }  # fmt: skip


def test_the_needs_of_a_config_come_from_its_plan(tmp_path: Path) -> None:
    config = read_config(Path("model_configs/llama70b_draft7b.yaml"))
    needs = needs_of(Run(config, Workspace(tmp_path, config.name)))
    assert (needs.gpu, needs.ranks, needs.sm) == ("H100-SXM", 4, 90)
    assert needs.disk_bytes > 4 * 75e9


def test_this_machine_is_looked_at_without_harm(gpu_machine: Path, tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        machine = look(tmp_path, (port,))
    assert machine.busy_ports == (port,) and machine.gpus[0].sm == 90
    assert machine.compiler_versions == {"tensorrt_llm": "1.2.1"}
    assert machine.disk_bytes > 0 and machine.cpus > 0
    assert {"gpu", "driver", "trtllm-build"} <= {f.name for f in examine(None, tmp_path)}


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ('echo \'{"Runtimes": {"nvidia": {}, "runc": {}}}\'', (True, True)),
        ('echo \'{"Runtimes": {"runc": {}}}\'', (True, False)),
        ('echo \'{"ServerErrors": ["Cannot connect"]}\'', (False, False)),
        ("exit 1", (False, False)),
    ],
)
def test_the_container_runtime_is_asked(script: str, expected, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    runtime = find_container_runtime()
    assert runtime is not None and (runtime.answers, runtime.knows_nvidia) == expected


BF16 = read_config(Path("model_configs/smollm2-135m_hybrid_bf16.yaml")).engine
NATIVE = ("avx2", "avx512f", "avx512_bf16")


@pytest.mark.parametrize(
    ("kinds", "engine", "noted"),
    [
        (("avx2",), BF16, True),
        (("avx2", "avx512f"), BF16, True),
        (NATIVE, BF16, False),
        (("avx2", "amx_bf16"), BF16, False),
        (("aarch64",), BF16, False),
        (("avx2",), dataclasses.replace(BF16, dtype="float32"), False),
        (("avx2",), dataclasses.replace(BF16, quantization="int8"), False),
        (("avx2",), dataclasses.replace(BF16, backend="tensorrt"), False),
    ],
)
def test_bfloat16_on_a_cpu_without_its_instructions_is_noted(
    kinds: tuple[str, ...], engine: EngineOptions, noted: bool
) -> None:
    notes = list(cpu_notes(engine, kinds))
    assert [("engine.dtype: float32" in note) for note in notes] == [True] * noted
    machine = changed(cpu_kinds=kinds)
    found = judge(machine, Needs(BACKENDS["openvino"], engine=engine))
    (lines,) = [[f for f in found if f.name == "bfloat16"]]
    assert len(lines) == noted and not any(line.problem for line in lines)


def test_the_flags_of_a_cpu_are_whole_words(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("model name : X\nflags : fpu avx2 avx512f avx512_bf16_of_tomorrow\n")
    assert cpu_kinds(info) == ("avx2", "avx512f")
    assert len(cpu_kinds(tmp_path / "none")) == 1


def test_plan_notes_bfloat16_as_the_cpu_of_this_machine_has_it(tmp_path: Path) -> None:
    config = read_config(Path("model_configs/smollm2-135m_hybrid_bf16.yaml"))
    if not Path(config.target.model).expanduser().is_dir():
        pytest.skip("the model is not on this machine")
    notes = make_plan(config, Workspace(tmp_path, config.name)).notes
    assert any("amx_bf16" in note for note in notes) == emulates_bfloat16(cpu_kinds())
