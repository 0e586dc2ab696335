"""What a refusal proposes can be done where it is proposed, and is what would help."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specpipe.config.run_config import RunConfig, read_config
from specpipe.core.errors import Rejection
from specpipe.core.upstream import ENGINE_MODES
from specpipe.engine.gpus import GPUS, find_gpu, unknown_gpu
from specpipe.engine.tensorrt.profiles import DEFAULT
from specpipe.plan.opened import OpenedModels
from specpipe.plan.plan import check_memory
from specpipe.plan.resolve import resolve
from specpipe.plan.sizing import Sizing, measure, ways_to_fit
from specpipe.runtime.assembly import load_backend
from tests.helpers.gpu_configs import REFUSED, changed, plan_of, words

KNOWN = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
CPU: dict[str, Any] = {"engine.backend": "openvino", "engine.gpu": None, "engine.dtype": "float32",
                       "engine.max_seq_len": 2048, "engine.max_input_len": 1024,
                       "target.model": KNOWN}  # fmt: skip
ON_CPU: list[tuple[str, dict[str, Any]]] = [
    ("llama8b_lookahead", CPU | {"engine.dtype": "float16"}),
    ("llama8b_lookahead", CPU | {"engine.tp_size": 2}),
    ("llama8b_lookahead", CPU | {"engine.gpu": "H100-SXM"}),
    ("llama8b_lookahead", CPU | {"engine.kv_cache_quantization": "fp8"}),
    ("llama8b_lookahead", CPU | {"engine.max_seq_len": 4000}),
    ("vicuna7b_eagle", CPU),
    ("vicuna7b_redrafter", CPU | {"speculation.greedy_search": False}),
    ("deepseek-v3_mtp_llmapi", CPU),
    ("vicuna7b_medusa", CPU),  # heads of another size
]  # fmt: skip
OF_GPUS = r"GPU|tp_size|pp_size|fp8|awq|nvfp4|H100|trtllm|container|tensorrt_llm"
METHODS_OF = {
    "openvino": {"none", "prompt_lookup", "draft_model", "medusa", "lookahead", "hybrid",
                 "redrafter"},
    "tensorrt": set(ENGINE_MODES),
    "llmapi": set(DEFAULT.llmapi_methods),
}  # fmt: skip


def misfits(hint: str, backend: str) -> list[str]:
    """List what a hint proposes that the backend does not have; "backend: other" leaves it."""
    clauses = re.split(r"; |, or (?=use |set |leave |backend)| or (?=backend)", hint)
    clauses = [c for c in clauses if not re.search(r"backend: (?!" + backend + r")", c)]
    found = [c for c in clauses if backend == "openvino" and re.search(OF_GPUS, c)
             and not c.startswith(("remove ", "set engine.max"))]  # fmt: skip
    found += [c for c in clauses if backend != "openvino" and re.search(r"\bCPU|float32", c)]
    for clause in clauses:
        named = re.search(r"methods?: ([a-z_0-9]+(?:(?:, | or )[a-z_0-9]+)*)", clause)
        methods = set(re.split(r", | or ", named[1])) if named else set()
        found += [f"method {method}" for method in methods - METHODS_OF[backend]]
    return found


@pytest.mark.parametrize(
    ("name", "changes"),
    [*ON_CPU, *REFUSED],
    ids=lambda value: value if isinstance(value, str) else words(value)[-60:],
)  # fmt: skip
def test_a_hint_proposes_only_what_its_backend_has(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    file = changed(name, changes, tmp_path)
    backend = read_config(file).engine.backend
    rejections = plan_of(file).rejections
    assert rejections
    assert {r.hint: misfits(r.hint, backend) for r in rejections if misfits(r.hint, backend)} == {}


def test_the_judge_of_hints_sees_what_does_not_fit() -> None:
    assert misfits("take larger GPUs, or a smaller model", "openvino")
    assert misfits("use method: eagle3, draft_model or prompt_lookup", "openvino")
    assert misfits("use method: draft_model or prompt_lookup", "tensorrt")
    assert not misfits("use method: medusa, or backend: llmapi", "openvino")


def sizing_of(tmp_path: Path, gib: float, **engine: Any) -> Sizing:
    config = read_config(changed("llama8b_lookahead", CPU, tmp_path))
    backend = load_backend("openvino")
    config = replace(config, engine=replace(config.engine, tp_size=1, **engine))
    return Sizing(config, resolve(config, OpenedModels()).models, backend, int(gib * 2**30 / 0.95))


def refused(sizing: Sizing) -> Rejection:
    memory = measure(sizing)
    (rejection,) = check_memory(memory, sizing.config, ways_to_fit(sizing, memory))
    return rejection


def with_way(config: RunConfig, way: str) -> RunConfig:
    values = dict(re.findall(r"engine\.(\w+): (\w+)", way))
    numbers = {key: int(v) if v.isdecimal() else v for key, v in values.items()}
    return replace(config, engine=replace(config.engine, **numbers))


@pytest.mark.parametrize(
    ("gib", "engine", "ways"),
    [
        (6, {"max_batch_size": 32}, ["max_batch_size: 15"]),
        (4.5, {"max_batch_size": 1, "quantization": "int8"}, None),
        (5.5, {"max_batch_size": 20}, ["dtype: bfloat16", "quantization: int8", "max_batch_size"]),
        (3, {"max_batch_size": 64, "quantization": "int8"}, ["max_batch_size: "]),
        (1.58, {"quantization": "int8"}, ["max_batch_size: 1 with engine.max_seq_len"]),
    ],
)  # fmt: skip
def test_a_cpu_is_offered_sizes_that_fit_it(
    gib: float, engine: dict[str, Any], ways: list[str] | None, tmp_path: Path
) -> None:
    sizing = sizing_of(tmp_path, gib, **engine)
    if ways is None:
        assert measure(sizing).fits
        return
    rejection = refused(sizing)
    assert "on this machine" in rejection.reason and "KV cache for" in rejection.reason
    offered = rejection.hint.split(": ", 1)[1].split("; ")
    assert all(way in rejection.hint for way in ways)
    for way in offered:
        assert replace(sizing, config=with_way(sizing.config, way)).memory().fits, way


@pytest.mark.parametrize("key", ["max_batch_size", "max_seq_len"])
def test_the_offered_size_is_the_largest(key: str, tmp_path: Path) -> None:
    sizing = sizing_of(tmp_path, 6, max_batch_size=20)
    found = re.search(rf"engine\.{key}: (\d+)", refused(sizing).hint)
    assert found
    for more, fits in ((0, True), (1, False)):
        other = with_way(sizing.config, f"engine.{key}: {int(found[1]) + more}")
        assert replace(sizing, config=other).memory().fits is fits


def test_what_no_size_can_make_fit_needs_more_memory(tmp_path: Path) -> None:
    assert refused(sizing_of(tmp_path, 0.5)).hint == (
        "use a machine with more RAM, or a smaller model"
    )


@pytest.mark.parametrize("name", ["h100-sxm", "H100-SXM", "h100-Sxm", "rtx-4090", "a100-80gb"])
def test_a_gpus_name_may_be_in_any_case(name: str, tmp_path: Path) -> None:
    assert find_gpu(name) is not None
    plan = plan_of(changed("llama8b_lookahead", {"engine.gpu": name}, tmp_path))
    assert plan.requests["target"].sm is not None and "not known" not in str(plan.rejections)


def test_equal_gpus_make_equal_plans(tmp_path: Path) -> None:
    plans = [
        plan_of(changed("llama8b_lookahead", {"engine.gpu": name}, tmp_path))
        for name in ("H100-SXM", "h100-sxm")
    ]
    assert plans[0].requests == plans[1].requests


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("H101", ["H100-PCIe", "H100-SXM", "H100-NVL"]),
        ("h100-smx", ["H100-SXM"]),
        ("A10G", ["A10"]),
        ("gh200-96", ["GH200-96GB"]),
        *((other, []) for other in ("V100", "T4", "TPU-v5", "", " ", "MI300X", "Arc-A770")),
    ],
)
def test_only_similar_names_are_suggested(name: str, similar: list[str]) -> None:
    hint = unknown_gpu(name).hint
    suggested = hint.split("?")[0].removeprefix("did you mean ").split(" or ")
    assert (suggested if "?" in hint else []) == similar
    assert hint.endswith("known: " + ", ".join(GPUS))
