"""EAGLE engines: their flags, what they take, and the sentence for what cannot be one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.config.run_config import read_config
from specpipe.core.artifacts import Workspace
from specpipe.core.errors import StageFailed
from specpipe.engine.backend import BuildRequest
from specpipe.engine.tensorrt.backend import TensorRtBackend
from specpipe.engine.tensorrt.footprint import footprint
from specpipe.engine.tensorrt.lower import build_flags, engine_seq_len
from specpipe.engine.tensorrt.profiles import DEFAULT
from specpipe.run.run import Run
from specpipe.run.stages import build
from tests.helpers.models import make_eagle
from tests.helpers.trtllm_build import LLAMA_8B, TABLES, parse, request

NET = replace(LLAMA_8B, num_hidden_layers=1)
WITH_DRAFTER = replace(
    LLAMA_8B, num_eagle_layers=4, max_non_leaves_per_layer=10, eagle_net_config=NET
)


def eagle(**changes: object) -> BuildRequest:
    return request(**{"method": "eagle", "draft_nodes": 63, "model": WITH_DRAFTER, **changes})


def said(**changes: object) -> str:
    return " | ".join(str(rejection) for rejection in TensorRtBackend().check(eagle(**changes)))


@pytest.mark.parametrize("release", TABLES)
def test_the_command_is_one_that_its_release_reads_with_all_that_eagle_needs(release: str) -> None:
    (command,) = TensorRtBackend().commands(eagle(release=release), Path("in"), Path("out"))
    flags = parse(command.argv, release)
    assert flags["--speculative_decoding_mode"] == "eagle" and flags["--max_draft_len"] == "63"
    assert flags["--use_paged_context_fmha"] == "enable" and flags["--kv_cache_type"] == "paged"
    assert int(str(flags["--max_num_tokens"])) >= 8 * 64
    assert said(release=release) == ""


def test_upstream_adds_the_drafts_and_a_place_for_every_level_to_the_length() -> None:
    assert engine_seq_len(eagle()) == 2048 + 63 + 4
    assert engine_seq_len(request(method="medusa", draft_nodes=63)) == 2048 + 63
    flags = parse(build_flags(eagle(), Path("in"), Path("out"), DEFAULT), "1.2.1")
    assert flags["--max_seq_len"] == "2048"  # what is asked for


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_batch_size": 513}, "at most 512 sequences, but engine.max_batch_size is 513"),
        ({"kv_cache_quantization": "int8"}, "no scales for an int8 KV cache"),
        ({"kv_cache_quantization": "fp8", "quantization": "fp8"}, "no scales for an fp8 KV cache"),
        ({"quantization": "int8_sq"}, "engines of method eagle do not support SmoothQuant weights"),
        ({"model": replace(WITH_DRAFTER, architecture="Qwen2ForCausalLM")},
         "EAGLE model cannot be built on Qwen2ForCausalLM, only on LlamaForCausalLM"),
        ({"draft_nodes": 0}, "method eagle would draft no tokens"),
        ({"release": "1.1.0"}, "TensorRT-LLM 1.1.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_eagle_engine_is_refused(changes: dict[str, object], words: str) -> None:
    assert words in said(**changes)


def test_the_largest_batch_is_not_refused_and_other_methods_may_have_more() -> None:
    assert said(max_batch_size=512) == ""
    assert TensorRtBackend().check(request(max_batch_size=513)) == []


def test_windowed_layers_are_refused_because_rows_of_the_cache_are_taken_back() -> None:
    how = replace(LLAMA_8B.arithmetic, sliding_windows=(1024,) * 32)
    text = said(model=replace(WITH_DRAFTER, arithmetic=how))
    assert "method eagle discards rows of the KV cache" in text


def test_every_level_has_weights_of_its_own_and_all_share_one_more_layer_of_cache() -> None:
    plain, ours = footprint(request()), footprint(eagle())
    table = 2 * 128256 * 4096
    layer = 2 * (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 4096)
    one = layer + 2 * (2 * 4096 + 1) * 4096 + 2 * table
    assert ours.weights - plain.weights == 4 * one
    assert ours.looked_up - plain.looked_up == 4 * table
    assert ours.kv_per_token * 32 == plain.kv_per_token * 33


def test_ranks_share_the_levels() -> None:
    from specpipe.core.divisibility import Parallel

    one, two = footprint(eagle()), footprint(eagle(parallel=Parallel(2)))
    table = 2 * 128256 * 4096
    assert two.weights == pytest.approx((one.weights + 5 * table) / 2, rel=1e-3)


@pytest.mark.slow
def test_a_build_publishes_an_engine_that_is_the_planned_one(
    write_config: Callable[..., Path],
    tmp_path: Path,
    gpu_machine: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_eagle(tmp_path / "drafter", seed=5)
    path = write_config(
        engine={"backend": "tensorrt", "gpu": "H100-SXM", "dtype": "float16", "tp_size": 1,
                "max_batch_size": 2, "max_input_len": 100, "max_seq_len": 200},
        speculation={"method": "eagle", "drafter": str(tmp_path / "drafter"), "num_draft_tokens": 6,
                     "num_eagle_layers": 2},
    )  # fmt: skip
    config = read_config(path)
    place = Workspace(tmp_path / "work", config.name)
    build(Run(config, place), ("convert", "compile"))
    built = json.loads((place.engine("target") / "config.json").read_text())
    assert built["build_config"]["speculative_decoding_mode"] == 32
    assert built["build_config"]["max_seq_len"] == 200 + 6 + 2
    assert built["pretrained_config"]["num_eagle_layers"] == 2
    monkeypatch.setenv("STANDIN_FAULT", "config:speculative_decoding_mode=4")
    other = Workspace(tmp_path / "other", config.name)
    with pytest.raises(StageFailed, match="speculative_decoding_mode is 4, planned was 32"):
        build(Run(config, other), ("convert", "compile"))
