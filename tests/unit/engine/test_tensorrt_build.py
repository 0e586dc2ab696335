"""Building TensorRT-LLM engines with a mock `trtllm-build`.

Nothing here needs a GPU. The mock cannot prove that TensorRT accepts the network.
"""

import json
import multiprocessing
import os
import shutil
import signal
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from specpipe.checkpoint.inspection.inspect import inspect_folder
from specpipe.cli import main
from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, StageFailed, Unsupported
from specpipe.engine.tensorrt.built import compare
from specpipe.engine.tensorrt.container import in_container
from specpipe.engine.tensorrt.log import advise, explain_exit, phase
from specpipe.engine.tensorrt.machine import find_gpus
from specpipe.run.run import Run
from specpipe.run.stages import build, require_repository, status
from tests.helpers.models import make_redrafter
from tests.helpers.processes import is_running
from tests.helpers.waiting import until

ENGINE = {"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "bfloat16", "max_batch_size": 2,
          "max_input_len": 100, "max_seq_len": 200}  # fmt: skip
COMPILE = ("convert", "compile")


@pytest.fixture(scope="session")
def converted(tiny: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace in which both models of the run are converted."""
    folder = tmp_path_factory.mktemp("converted")
    speculation = {"method": "draft_model", "draft": {"model": str(tiny_draft)}}
    target = {"model": str(tiny)}
    values = {"name": "tiny", "target": target, "engine": ENGINE, "speculation": speculation}
    (folder / "run.yaml").write_text(json.dumps(values))
    build(Run(read_config(folder / "run.yaml"), Workspace(folder / "work", "tiny")), ("convert",))
    return folder / "work"


@pytest.fixture
def run(write_config, tiny_draft: Path, converted: Path, tmp_path: Path):
    """Return a function that reads a draft-model run for a GPU, with changes to its engine."""
    shutil.copytree(converted, tmp_path / "work")

    def make(**engine: object):
        speculation = {"method": "draft_model", "draft": {"model": str(tiny_draft)}}
        config = read_config(write_config(engine={**ENGINE, **engine}, speculation=speculation))
        return config, Workspace(tmp_path / "work", config.name)

    return make


def fates(results) -> list[tuple[str, str, bool]]:
    return [(r.stage, r.role, r.fresh) for r in results]


@pytest.mark.slow
def test_a_build_publishes_checked_engines_and_finds_them_fresh_afterwards(
    run, gpu_machine: Path
) -> None:
    place = run()[1]
    assert [r.fresh for r in build(Run(*run()), COMPILE)] == [True, True, False, False]
    assert all(r.fresh for r in build(Run(*run()), COMPILE))
    config = json.loads((place.engine("target") / "config.json").read_text())
    assert config["build_config"]["speculative_decoding_mode"] == 2
    assert config["build_config"]["max_draft_len"] == 4
    assert config["build_config"]["max_seq_len"] == 204
    assert "Total time of building" in (place.engines / "draft.build.log").read_text()


def test_a_redrafter_is_converted_built_and_inspected_without_a_defect(
    write_config, gpu_machine: Path, tmp_path: Path
) -> None:
    make_redrafter(tmp_path / "drafter", seed=3)
    speculation = {"method": "redrafter", "drafter": str(tmp_path / "drafter"), "num_beams": 3}
    engine = {**ENGINE, "tp_size": 2}
    config = read_config(write_config(engine=engine, speculation=speculation))
    place = Workspace(tmp_path / "work", config.name)
    build(Run(config, place), COMPILE)
    built = json.loads((place.engine("target") / "config.json").read_text())
    assert built["build_config"]["speculative_decoding_mode"] == 16
    assert (built["build_config"]["max_draft_len"], built["build_config"]["max_seq_len"]) == (
        15,
        215,
    )
    found = inspect_folder(place.engine("target"))
    assert found.defects == () and found.speculation.redrafter_num_beams == 3
    pretrained = {**built["pretrained_config"], "redrafter_num_beams": 4}
    (place.engine("target") / "config.json").write_text(
        json.dumps({**built, "pretrained_config": pretrained})
    )
    defects = " ".join(map(str, inspect_folder(place.engine("target")).defects))
    assert "max_draft_len is 15 in build_config and 20 by pretrained_config" in defects
    mode = {**built["build_config"], "speculative_decoding_mode": 1}
    (place.engine("target") / "config.json").write_text(json.dumps({**built, "build_config": mode}))
    defects = " ".join(map(str, inspect_folder(place.engine("target")).defects))
    assert "build with --speculative_decoding_mode explicit_draft_tokens" in defects


@pytest.mark.slow
def test_the_manifest_remembers_where_and_how_an_engine_was_built(run, gpu_machine: Path) -> None:
    build(Run(*run()), COMPILE)
    manifest = json.loads((run()[1].engine("target") / "specpipe.json").read_text())
    facts = manifest["facts"]
    assert facts["gpu"] == "NVIDIA H100 80GB HBM3" and facts["sm"] == 90
    assert facts["driver"] == "550.54.15" and facts["built with tensorrt_llm"] == "1.2.1"
    assert facts["command"].startswith("trtllm-build --checkpoint_dir checkpoints/target ")
    assert len(facts["sha256 rank0.engine"]) == 64
    assert manifest["inputs"]["--max_draft_len"] == "4" and manifest["inputs"]["gpu"] == "H100-SXM"


@pytest.mark.slow
def test_two_builds_of_one_run_give_equal_bytes(run, gpu_machine: Path) -> None:
    trees = []
    for _ in range(2):
        build(Run(*run()), COMPILE)
        folder = run()[1].engine("target")
        trees.append({f.name: f.read_bytes() for f in folder.iterdir()})
        shutil.rmtree(folder)
    assert trees[0] == trees[1]


@pytest.mark.slow
def test_the_timings_of_kernels_are_kept_for_the_next_build(run, gpu_machine: Path) -> None:
    build(Run(*run()), COMPILE)
    (cache,) = (run()[1].root / "engines/.timing").iterdir()
    assert cache.name == "1.2.1_NVIDIA-H100-80GB-HBM3.cache"
    assert not (run()[1].engine("draft") / cache.name).exists()
    assert "Loading timing cache timings" in (run()[1].engines / "draft.build.log").read_text()


def test_without_a_compiler_the_checkpoints_are_converted_and_the_next_step_is_named(
    run, gpu_machine: Path
) -> None:
    (gpu_machine / "bin/trtllm-build").unlink()
    with pytest.raises(
        Unsupported, match="trtllm-build is not installed on this machine(.|\n)*--in-contain"
    ):
        build(Run(*run()), COMPILE)
    assert fates(status(Run(*run())))[:2] == [
        ("convert", "target", True),
        ("convert", "draft", True),
    ]


def test_a_machine_without_a_gpu_is_refused(run, gpu_machine: Path) -> None:
    (gpu_machine / "bin/nvidia-smi").unlink()
    (gpu_machine / "bin/nvidia-smi").symlink_to("/bin/false")
    with pytest.raises(Unsupported, match="nvidia-smi finds no GPU(.|\n)*H100-SXM"):
        build(Run(*run()), COMPILE)


def test_another_gpu_than_the_planned_one_is_refused(run, gpu_machine: Path, monkeypatch) -> None:
    monkeypatch.setenv("STANDIN_GPUS", "NVIDIA A10, 8.6, 23028, 550.54.15")
    with pytest.raises(
        Unsupported, match=r"NVIDIA A10 \(SM 86\), but engine.gpu is H100-SXM \(SM 90"
    ):
        build(Run(*run()), COMPILE)


def test_another_release_than_the_planned_one_is_refused_before_it_builds(
    run, gpu_machine: Path
) -> None:
    site = gpu_machine / "site/tensorrt_llm-1.2.1.dist-info"
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.1.0\n")
    with pytest.raises(Unsupported, match="TensorRT-LLM 1.1.0 is installed here(.|\n)*1.2.1"):
        build(Run(*run()), COMPILE)
    assert not list(run()[1].engines.glob("*.build.log"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("out-of-memory", "ended with exit code 1(.|\n)*out of memory(.|\n)*lower engine.max_batc"),
        ("disk-full", "No space left on device(.|\n)*free some disk space"),
        ("killed", "was killed, perhaps by the kernel(.|\n)*add memory"),
        ("no-rank", "rank0.engine is missing, planned was a file"),
        ("config:max_batch_size=1", "max_batch_size is 1, planned was 2"),
        ("config:speculative_decoding_mode=1", "speculative_decoding_mode is 1, planned was 2"),
        ("config:max_draft_len=0", "max_draft_len is 0, planned was 4"),
        ("config:max_seq_len=100", "max_seq_len is 100, planned was at least 200"),
    ],
)
def test_a_failed_build_says_why_and_publishes_nothing(
    fault: str, words: str, run, gpu_machine: Path, monkeypatch
) -> None:
    monkeypatch.setenv("STANDIN_FAULT", fault)
    with pytest.raises(StageFailed, match=words):
        build(Run(*run()), COMPILE)
    place = run()[1]
    assert not place.engine("target").exists() and not list(place.engines.glob(".*.tmp"))
    assert place.checkpoint("target").is_dir()


def test_an_engine_of_another_release_is_not_published(run, gpu_machine: Path, monkeypatch) -> None:
    monkeypatch.setenv("STANDIN_VERSION", "1.1.0")
    with pytest.raises(StageFailed, match="version is 1.1.0, planned was 1.2.1"):
        build(Run(*run()), COMPILE)


@pytest.mark.slow
def test_an_older_release_is_built_with_its_own_flags_in_its_own_container(
    run, container_machine: Path, monkeypatch
) -> None:
    monkeypatch.setenv("STANDIN_VERSION", "0.18.2")
    config, place = run(tensorrt_llm="0.18.2")
    build(Run(config, place), COMPILE, runtime="docker")
    calls = (container_machine / "docker.log").read_text()
    assert "25.04-trtllm-python-py3" in calls and "26.04" not in calls
    assert (place.root / "engines/.timing/0.18.2_NVIDIA-H100-80GB-HBM3.cache").is_file()


@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (1, 2)])
def test_every_rank_of_an_engine_is_built_and_counted(
    tp_size: int, pp_size: int, write_config, gpu_machine: Path, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STANDIN_GPUS", "NVIDIA H100 80GB HBM3, 9.0, 81559, 580.1\n" * 2)
    engine = {**ENGINE, "tp_size": tp_size, "pp_size": pp_size}
    config = read_config(write_config(engine=engine))
    place = Workspace(tmp_path / "work", config.name)
    build(Run(config, place), COMPILE)
    manifest = json.loads((place.engine("target") / "specpipe.json").read_text())
    assert {"rank0.engine", "rank1.engine"} <= set(manifest["files"])
    assert "--workers 2" in manifest["facts"]["command"]


def command_line(args: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    main(args)


def start_build(config, place: Workspace, *more: str) -> SpawnProcess:
    """Run the command line in a process of its own, which a test may signal."""
    args = ["build", "--config", str(config.path), "--workspace", str(place.root), *more]
    # Not forked: a copy would have the engines of other tests without their threads, and crash.
    process = multiprocessing.get_context("spawn").Process(target=command_line, args=(args,))
    process.start()
    return process


def await_file(path: Path, process: SpawnProcess) -> str:
    def text() -> str:
        assert process.is_alive(), "the build ended early"
        return path.read_text() if path.is_file() else ""

    return until(text, 60, lambda: f"{path} does not come")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_cancelled_build_ends_the_compiler_and_its_workers_and_goes_on_later(
    number: signal.Signals, code: int, run, gpu_machine: Path, monkeypatch
) -> None:
    config, place = run()
    monkeypatch.setenv("STANDIN_FAULT", "hang@draft")
    process = start_build(config, place)
    worker = int(await_file(place.engines / "hanging", process))
    os.kill(process.pid, number)
    process.join(30)
    assert process.exitcode == code
    assert not is_running(worker) and not list(place.engines.glob(".*.tmp"))
    monkeypatch.delenv("STANDIN_FAULT")
    assert fates(build(Run(config, place), COMPILE)) == [
        ("convert", "target", True), ("convert", "draft", True),
        ("compile", "target", True), ("compile", "draft", False),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_build_that_is_killed_outright_leaves_no_engine_and_goes_on_later(
    run, gpu_machine: Path, monkeypatch
) -> None:
    config, place = run()
    monkeypatch.setenv("STANDIN_FAULT", "hang@draft")
    process = start_build(config, place)
    worker = int(await_file(place.engines / "hanging", process))
    process.kill()
    process.join(30)
    assert not place.engine("draft").exists()
    os.kill(worker, signal.SIGKILL)
    monkeypatch.delenv("STANDIN_FAULT")
    assert [r.fresh for r in build(Run(config, place), COMPILE)] == [True, True, True, False]
    assert not list(place.engines.glob(".*.tmp"))


@pytest.mark.slow
def test_an_engine_for_another_gpu_or_option_is_not_packaged_nor_served(
    run, gpu_machine: Path
) -> None:
    build(Run(*run()), COMPILE)
    other = run(gpu="H200")
    for check in (
        lambda: build(Run(*other), ("package",)),
        lambda: require_repository(Run(*other)),
    ):
        with pytest.raises(ConfigError, match="config has now: gpu changed from H100-SXM to H200"):
            check()


@pytest.mark.slow
def test_the_compiler_runs_in_the_container_with_only_what_it_needs(
    run, container_machine: Path
) -> None:
    config, place = run()
    build(Run(config, place), COMPILE, runtime="docker")
    calls = [
        json.loads(line) for line in (container_machine / "docker.log").read_text().splitlines()
    ]
    assert len(calls) == 2
    assert all("tritonserver:26.04-trtllm-python-py3" in " ".join(call) for call in calls)
    facts = json.loads((place.engine("draft") / "specpipe.json").read_text())["facts"]
    assert facts["image"].endswith("26.04-trtllm-python-py3") and facts["sm"] == 90


@pytest.mark.slow
def test_a_cancelled_build_removes_its_container(run, container_machine: Path, monkeypatch) -> None:
    config, place = run()
    monkeypatch.setenv("STANDIN_FAULT", "hang@target")
    process = start_build(config, place, "--in-container")
    await_file(place.engines / "hanging", process)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    log = (container_machine / "docker.log").read_text()
    start, end = map(json.loads, log.splitlines())
    assert end[1:] == ["rm", "--force", start[start.index("--name") + 1]]


def test_the_argument_list_of_the_container_is_this_one() -> None:
    launch = in_container(
        ("trtllm-build", "--workers", "1"), runtime="docker", image="IMAGE", name="NAME",
        read_only=[Path("/in")], writable=[Path("/out")],
    )  # fmt: skip
    assert launch.argv == (
        "docker", "run", "--rm", "--init", "--name", "NAME", "--gpus", "all",
        "--user", f"{os.getuid()}:{os.getgid()}", "--network", "none", "--shm-size", "2g",
        "--ulimit", "memlock=-1", "--ulimit", "stack=67108864",
        "--env", "HOME=/tmp", "--env", "USER=specpipe",
        "--mount", "type=bind,src=/in,dst=/in,readonly", "--mount", "type=bind,src=/out,dst=/out",
        "--workdir", "/tmp", "IMAGE", "trtllm-build", "--workers", "1",
    )  # fmt: skip
    assert launch.abort == ("docker", "rm", "--force", "NAME")
    podman = in_container(
        ("x",), runtime="podman", image="IMAGE", name="NAME", read_only=[], writable=[]
    )
    assert "nvidia.com/gpu=all" in podman.argv and "--user" not in podman.argv


def test_a_backend_without_a_compiler_refuses_the_container(write_config, tmp_path: Path) -> None:
    config = read_config(write_config())
    with pytest.raises(Unsupported, match="openvino compiles in this process"):
        build(Run(config, Workspace(tmp_path, config.name)), runtime="docker")


def test_gpus_are_read_from_the_driver(gpu_machine: Path, monkeypatch) -> None:
    monkeypatch.setenv("STANDIN_GPUS", "NVIDIA L4, 8.9, 23034, 570.1\nNVIDIA GB10, 12.1, [N/A], 1")
    assert [(gpu.sm, gpu.memory_mib) for gpu in find_gpus()] == [(89, 23034), (121, 0)]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("trtllm-build: error: unrecognized arguments: --fuse_fp4_quant", "another release"),
        ("error: argument --gemm_plugin: invalid choice: 'nvfp4'", "another release"),
        ("ValueError: max_workers must be greater than 0", "no GPU is visible"),
        ("RuntimeError: Required but not provided tensors:{'lm_head.weight'}", "defect of specpi"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver is too old"),
        ("docker: Error: pull access denied for nvcr.io/x", "log in to nvcr.io"),
        ("all went well until it did not", None),
    ],
)
def test_known_failures_have_a_hint(text: str, hint: str | None) -> None:
    advice = advise(1, text)
    assert advice is None if hint is None else hint in advice


def test_exits_are_told_in_words_and_progress_in_few() -> None:
    assert explain_exit(-15) == "was terminated by SIGTERM"
    assert explain_exit(2) == "ended with exit code 2"
    lines = ["[TRT-LLM] [I] Serializing engine to /e/rank3.engine...", "[TRT] [I] chatter"]
    assert phase(lines) == "writing rank 3" and phase(["chatter"]) is None


FLAGS = {"--max_seq_len": "200", "--max_batch_size": "2", "--max_input_len": "100",
         "--gemm_plugin": "bfloat16", "--use_paged_context_fmha": "enable",
         "--tokens_per_block": "32", "--logits_dtype": "float32",
         "--max_num_tokens": "8192"}  # fmt: skip
MODEL = {"architecture": "LlamaForCausalLM", "dtype": "bfloat16", "logits_dtype": "float32",
         "vocab_size": 320,
         "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
         "quantization": {"quant_algo": None, "kv_cache_quant_algo": None}}  # fmt: skip
BUILT = {"max_seq_len": 200, "max_batch_size": 2, "max_input_len": 100, "max_num_tokens": 400,
         "speculative_decoding_mode": 1,
         "plugin_config": {"gemm_plugin": "bfloat16", "use_paged_context_fmha": True,
                           "tokens_per_block": 32}}  # fmt: skip


def test_an_engine_as_planned_differs_in_nothing() -> None:
    built = {"version": "1.2.1", "pretrained_config": MODEL, "build_config": BUILT}
    assert compare(FLAGS, MODEL, built, "1.2.1") == []


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("pretrained_config", {"logits_dtype": "float16"}, "logits_dtype is float16, planned was"),
        ("pretrained_config", {"dtype": "float16"}, "dtype is float16, planned was bfloat16"),
        ("pretrained_config", {"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}},
         "mapping.tp_size is 2, planned was 1"),
        ("pretrained_config", {"quantization": {"quant_algo": "FP8"}}, "quant_algo is FP8"),
        ("build_config", {"max_num_tokens": 100}, "max_num_tokens is 100, planned was at least"),
        ("build_config", {"plugin_config": {**BUILT["plugin_config"],
                                            "use_paged_context_fmha": False}},
         "plugin_config.use_paged_context_fmha is disable, planned was enable"),
        ("build_config", {"plugin_config": {**BUILT["plugin_config"], "tokens_per_block": 64}},
         "tokens_per_block is 64, planned was 32"),
    ],
)  # fmt: skip
def test_every_difference_from_the_plan_is_named(section: str, change: dict, words: str) -> None:
    built = {"version": "1.2.1", "pretrained_config": MODEL, "build_config": BUILT}
    built[section] = {**built[section], **change}
    assert words in "; ".join(map(str, compare(FLAGS, MODEL, built, "1.2.1")))
