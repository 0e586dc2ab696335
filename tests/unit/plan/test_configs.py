"""The committed configs for GPUs: their plans, word for word, and what refuses a changed one."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.plan.gpus import GPUS, Gpu
from specpipe.plan.make_plan import make_plan
from specpipe.plan.plan import Plan
from specpipe.report.present_plan import plan_text
from tests.unit.engine.commands import parse

CONFIGS = Path("model_configs")
GOLDEN = Path(__file__).parents[2] / "golden"
ON_GPUS = sorted(f.stem for f in CONFIGS.glob("*.yaml") if "gpu:" in f.read_text())


def plan_of(file: Path) -> Plan:
    config = read_config(file)
    return make_plan(config, Workspace(Path(), config.name))


def test_the_example_in_the_documentation_is_what_plan_says() -> None:
    shown = Path("docs/gpu.md").read_text().split("```console\n")[1].split("...")[0]
    command, plan = shown.split("\n", 1)
    assert command == "$ specpipe plan --config model_configs/llama33-70b_draft1b_fp8.yaml"
    assert (GOLDEN / "plans/llama33-70b_draft1b_fp8.txt").read_text().startswith(plan)


def check_golden(name: str, text: str) -> None:
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), "UPDATE_GOLDEN=1 writes it"


def test_there_are_at_least_twelve() -> None:
    assert len(ON_GPUS) >= 12


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_plan_is_the_golden_one(name: str) -> None:
    plan = plan_of(CONFIGS / f"{name}.yaml")
    assert plan.rejections == ()
    here = replace(plan, gaps=())  # whether Model-Optimizer is installed is this machine's affair
    check_golden(f"plans/{name}.txt", plan_text(here) + "\n")


@pytest.mark.parametrize("name", ON_GPUS)
def test_its_commands_are_ones_that_its_release_can_read(name: str) -> None:
    plan = plan_of(CONFIGS / f"{name}.yaml")
    assert plan.commands or plan.files
    for command in plan.commands:
        flags = parse(command.argv, plan.versions["tensorrt_llm"])
        ranks = plan.config.engine.tp_size * plan.config.engine.pp_size
        assert flags["--workers"] == str(ranks)


@pytest.mark.parametrize("name", ON_GPUS)
def test_it_fits_and_above_its_largest_batch_it_does_not(name: str, tmp_path: Path) -> None:
    memory = plan_of(CONFIGS / f"{name}.yaml").memory
    if memory is None:  # an architecture that is only known upstream
        return
    assert memory.fits and memory.largest is not None
    for more, fits in ((0, True), (1, False)):
        size = {"engine.max_batch_size": memory.largest.batch_size + more}
        ranks = {"engine.tp_size": plan_of(CONFIGS / f"{name}.yaml").config.engine.tp_size}
        changed_memory = plan_of(changed(name, size | ranks, tmp_path)).memory
        assert changed_memory is not None and changed_memory.fits == fits


def test_planning_takes_less_than_two_seconds_of_work_and_no_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "specpipe", "plan", "--config", CONFIGS / "llama405b_draft8b.yaml"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


DRAFT, MEDUSA = "llama70b_draft7b", "vicuna7b_medusa"
REDRAFTER = "vicuna7b_redrafter"
LOOKAHEAD, EAGLE, EAGLE3 = "llama8b_lookahead", "vicuna7b_eagle", "llama8b_eagle3_llmapi"
MIXTRAL_HEADS = {"target.model": "mistralai/Mixtral-8x7B-Instruct-v0.1", "engine.gpu": "H200"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (DRAFT, {"engine.gpu": "H100"}),
    (DRAFT, {"engine.gpu": None, "engine.tp_size": None}),
    (DRAFT, {"engine.tp_size": 1}),
    (DRAFT, {"engine.tp_size": 2, "engine.max_batch_size": 64}),
    (DRAFT, {"engine.tp_size": 3}),
    (DRAFT, {"engine.pp_size": 3}),
    (DRAFT, {"engine.tp_size": 16}),
    (DRAFT, {"engine.max_seq_len": 9000}),
    (DRAFT, {"engine.dtype": "float32"}),
    (DRAFT, {"engine.quantization": "nvfp4"}),
    (DRAFT, {"engine.kv_cache_quantization": "int8"}),
    (DRAFT, {"engine.kv_cache_quantization": "fp8"}),
    (DRAFT, {"engine.gpu": "A100-80GB-SXM", "engine.quantization": "fp8"}),
    (DRAFT, {"engine.gpu": "B200", "engine.quantization": "int8"}),
    (DRAFT, {"engine.gpu": "RTX-PRO-6000", "engine.tensorrt_llm": "0.18.2"}),
    (DRAFT, {"engine.tensorrt_llm": "1.3.0rc22"}),
    (DRAFT, {"engine.tensorrt_llm": "1.1.0"}),
    (DRAFT, {"engine.tensorrt_llm": "1.2"}),
    (DRAFT, {"speculation.draft.model": "meta-llama/Llama-3.1-8B-Instruct"}),
    (DRAFT, {"speculation.draft_length": "adaptive"}),
    (DRAFT, {"speculation.max_concurrency": 4}),
    (DRAFT, {"speculation.method": "hybrid"}),
    (DRAFT, {"engine.backend": "openvino"}),
    (MEDUSA, {"speculation.tree": [[0, 0, 0, 0, 0]], "speculation.num_draft_tokens": None}),
    (MEDUSA, {"speculation.tree": "dynamic"}),
    (MEDUSA, {"speculation.acceptance": "typical"}),
    (MEDUSA, {"speculation.heads": "FasterDecoding/medusa-vicuna-13b-v1.3"}),
    (MEDUSA, {"engine.quantization": "int8_sq"}),
    (MEDUSA, {"engine.backend": "llmapi"}),
    (MEDUSA, MIXTRAL_HEADS | {"engine.dtype": "bfloat16", "speculation.heads": "heads/mixtral"}),
    ("vicuna13b_medusa_trtllm018", {"target.model": "Qwen/Qwen2-7B-Instruct",
                                    "speculation.heads": "heads/qwen2"}),
    (REDRAFTER, {"engine.backend": "openvino", "engine.gpu": None, "engine.dtype": "float32",
                 "speculation.greedy_search": False,
                 "target.model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}),
    (REDRAFTER, {"engine.backend": "llmapi"}),
    (REDRAFTER, {"engine.pp_size": 2}),
    (REDRAFTER, {"engine.quantization": "int8_sq"}),
    (REDRAFTER, {"target.model": "mistralai/Mistral-7B-v0.1"}),
    (REDRAFTER, {"target.model": "Qwen/Qwen2-7B-Instruct", "engine.tensorrt_llm": "0.18.2"}),
    (LOOKAHEAD, {"target.model": "mistralai/Mistral-7B-v0.1", "engine.max_seq_len": 6144}),
    (LOOKAHEAD, {"engine.tensorrt_llm": "0.18.2"}),
    (LOOKAHEAD, {"speculation.window_size": 1, "speculation.ngram_size": 1,
                 "speculation.verification_set_size": 0}),
    (LOOKAHEAD, {"engine.backend": "llmapi"}),
    (EAGLE, {"engine.backend": "llmapi"}),
    (EAGLE, {"engine.tensorrt_llm": "1.3.0rc22"}),
    (EAGLE, {"engine.pp_size": 2}),
    (EAGLE, {"engine.max_batch_size": 1024}),
    (EAGLE, {"engine.kv_cache_quantization": "fp8", "engine.quantization": "fp8"}),
    (EAGLE, {"engine.quantization": "int8_sq"}),
    (EAGLE, {"speculation.tree": "dynamic"}),
    (EAGLE, {"speculation.drafter": "yuhuili/EAGLE-LLaMA3-Instruct-8B"}),
    (EAGLE, {"target.model": "Qwen/Qwen2-7B-Instruct"}),
    (EAGLE3, {"engine.backend": "tensorrt"}),
    (EAGLE3, {"engine.backend": "openvino", "engine.gpu": None, "engine.dtype": "float32",
             "target.model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "engine.max_seq_len": 2048,
             "engine.max_input_len": 1024}),
    (EAGLE3, {"engine.quantization": "int4_awq"}),
    (EAGLE3, {"engine.kv_cache_quantization": "int8"}),
    (EAGLE3, {"engine.tensorrt_llm": "1.3.0rc22"}),
    ("deepseek-v3_mtp_llmapi", {"target.model": "meta-llama/Llama-3.3-70B-Instruct"}),
    ("qwen25-coder_ngram_llmapi", {"engine.backend": "tensorrt"}),
    ("qwen25-coder_ngram_llmapi", {"speculation.tree": "dynamic"}),
]  # fmt: skip


def changed(name: str, changes: dict[str, Any], folder: Path) -> Path:
    """Write a committed config with other values; None removes a key."""
    raw = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        section = raw
        for part in sections:
            section = section[part]
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def words(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {'(none)' if v is None else v}" for key, v in changes.items())


def test_what_cannot_work_is_refused_in_these_sentences(tmp_path: Path) -> None:
    lines = []
    for name, changes in REFUSED:
        rejections = plan_of(changed(name, changes, tmp_path)).rejections
        assert rejections, f"{name} with {words(changes)} is not refused"
        lines.append(f"{name} with {words(changes)}")
        lines += [f"  - {rejection.reason}\n    -> {rejection.hint}" for rejection in rejections]
    check_golden("refusals.txt", "\n".join(lines).replace(f"{tmp_path}/", "") + "\n")


def test_these_are_at_least_twenty_five_different_reasons(tmp_path: Path) -> None:
    assert len(REFUSED) >= 25
    kinds = {
        rejection.reason
        for name, changes in REFUSED
        for rejection in plan_of(changed(name, changes, tmp_path)).rejections
    }
    assert len(kinds) >= 25


def test_the_table_of_gpus_in_the_documentation_is_that_of_the_plan() -> None:
    file = Path("docs/gpu.md")
    text = file.read_text()
    begin = text.index("| A10 |")
    end = text.index("\n\n", begin)
    rows = "\n".join(_documented(gpu) for gpu in GPUS.values())
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text[:begin] + rows + text[end:])
        return
    assert text[begin:end] == rows, "UPDATE_GOLDEN=1 writes it"


def _documented(gpu: Gpu) -> str:
    throughput = (gpu.fp16_tflops, gpu.int8_tops, gpu.fp8_tflops, gpu.fp4_tflops)
    cells = [gpu.name, f"{gpu.sm / 10:.1f}", gpu.memory_gb, gpu.bandwidth_gbs]
    cells += ["-" if value is None else value for value in throughput]
    return "| " + " | ".join(str(c) for c in (*cells, gpu.nvlink_gbs, gpu.power_w)) + " |"
