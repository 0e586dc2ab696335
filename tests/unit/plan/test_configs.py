"""The committed configs for GPUs: their plans, word for word, and what refuses a changed one."""

import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.engine.gpus import GPUS, Gpu
from specpipe.report.present_plan import plan_text
from tests.helpers.gpu_configs import CONFIGS, REFUSED, changed, plan_of, words
from tests.helpers.trtllm_build import parse

GOLDEN = Path(__file__).parents[2] / "golden"
ON_GPUS = sorted(f.stem for f in CONFIGS.glob("*.yaml") if "gpu:" in f.read_text())


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


@pytest.mark.slow
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


def test_what_cannot_work_is_refused_in_these_sentences(tmp_path: Path) -> None:
    lines, reasons = [], set()
    for name, changes in REFUSED:
        rejections = plan_of(changed(name, changes, tmp_path)).rejections
        assert rejections, f"{name} with {words(changes)} is not refused"
        reasons |= {rejection.reason for rejection in rejections}
        lines.append(f"{name} with {words(changes)}")
        lines += [f"  - {rejection.reason}\n    -> {rejection.hint}" for rejection in rejections]
    check_golden("refusals.txt", "\n".join(lines).replace(f"{tmp_path}/", "") + "\n")
    assert len(REFUSED) >= 25 and len(reasons) >= 25


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
