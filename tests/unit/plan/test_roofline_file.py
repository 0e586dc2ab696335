"""The file of GPUs for `--cost-model`: the figures of the table, and an estimate from them."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.engine.gpus import GPUS
from specpipe.plan.make_plan import make_plan
from specpipe.plan.outlook import outlook
from specpipe.plan.roofline import Reached
from specpipe.plan.roofline_file import read_rooflines, rooflines_text

FILE = Path("model_configs/cost_models/nvidia-gpus.json")


def test_the_file_that_comes_with_specpipe_has_every_gpu_of_the_table() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(rooflines_text())
    assert FILE.read_text() == rooflines_text(), "UPDATE_GOLDEN=1 writes it"
    raw = json.loads(FILE.read_text())
    assert raw["estimated"] is True and raw["note"].startswith("An estimate, not a measurement.")
    assert raw["gpus"]["H100-SXM"]["bandwidth_gbs"] == 3350  # NVIDIA's H100 data sheet
    assert all(gpu["source"] for gpu in raw["gpus"].values())
    found = read_rooflines(raw, str(FILE))
    assert found.gpus == GPUS and found.reached == Reached()
    assert found.gpu("a100-80gb").name == "A100-80GB-SXM"
    with pytest.raises(Unsupported, match="has no GPU 'B300'"):
        found.gpu("B300")


def test_figures_of_a_file_change_the_estimate() -> None:
    """At one sequence, a step is bound by memory: half of the bandwidth takes twice as long."""
    config = read_config(Path("model_configs/llama8b_lookahead.yaml"))
    plan = make_plan(config, Workspace(Path(), config.name))
    raw = json.loads(rooflines_text())
    raw["reached"] |= {"launch_s": 1e-12, "step_s": 1e-12}
    assert plan.config.engine.gpu and plan.memory

    def plain_ms() -> float:
        found = read_rooflines(raw, "a file")
        gpu = found.gpu(plan.config.engine.gpu or "")
        footprints = plan.memory.footprints if plan.memory else {}
        made = outlook(plan.config, plan.requests, footprints, gpu, None, found.reached)
        return made.costs[1]

    before = plain_ms()
    raw["reached"]["bandwidth_share"] /= 2
    assert plain_ms() == pytest.approx(2 * before, rel=1e-3)
    raw["gpus"][plan.config.engine.gpu]["bandwidth_gbs"] *= 2
    assert plain_ms() == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gpus": {"H1": {}}}, "H1 is not a GPU that specpipe knows"),
        ({"reached": {"speed": 1}}, "reached has speed"),
        ({"reached": {"launch_s": 0}}, "0 must be above 0"),
        ({"reached": {"launch_s": "1"}}, "'1' is not a number"),
        ({"gpus": {"L4": {"bandwidth_gbs": 1}}}, "dense_tflops"),
        ({"gpu": {}}, "unknown: gpu"),
    ],
)
def test_a_file_of_gpus_that_is_none_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="a file: not a file of GPUs") as caught:
        read_rooflines({**json.loads(rooflines_text()), **change}, "a file")
    assert words in str(caught.value)
