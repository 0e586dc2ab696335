"""Builds of the CPU engine: equal bytes, damaged files, refusals, precisions, the pool."""

import hashlib
from dataclasses import replace
from pathlib import Path

import openvino as ov
import pytest

from specpipe.core.artifacts import read_model_config
from specpipe.core.divisibility import Parallel
from specpipe.core.errors import ConfigError
from specpipe.engine.openvino.backend import OpenVinoBackend
from specpipe.engine.openvino.precision import Precision
from tests.helpers.cpu_engines import build, convert, request_for


def test_two_builds_give_equal_bytes(tiny: Path, tmp_path: Path) -> None:
    first, second = build(tiny, tmp_path / "1"), build(tiny, tmp_path / "2")
    for name in ("openvino_model.xml", "openvino_model.bin", "config.json", "engine.json"):
        digests = {hashlib.sha256((e / name).read_bytes()).hexdigest() for e in (first, second)}
        assert len(digests) == 1, name


def test_a_damaged_engine_is_refused(tiny: Path, tmp_path: Path) -> None:
    engine = build(tiny, tmp_path)
    (engine / "openvino_model.xml").write_text("<net")
    with pytest.raises(ConfigError, match="the engine cannot be loaded"):
        OpenVinoBackend().load(engine)


def test_a_truncated_checkpoint_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = convert(tiny, tmp_path) / "rank0.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    model = read_model_config(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="checkpoint file is incomplete"):
        OpenVinoBackend().build(request_for(model), tmp_path / "checkpoint", tmp_path / "engine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": "H100-SXM"}, "runs on the CPU"),
        ({"parallel": Parallel(2)}, "one rank"),
        ({"dtype": "float16"}, "float32 and bfloat16"),
    ],
)
def test_what_the_cpu_cannot_do_is_refused(
    changes: dict, words: str, tiny: Path, tmp_path: Path
) -> None:
    model = read_model_config(convert(tiny, tmp_path))
    assert OpenVinoBackend().check(request_for(model, batch_invariant=True)) == []
    (rejection,) = OpenVinoBackend().check(request_for(model, **changes))
    assert words in rejection.reason


def test_int4_is_refused_where_groups_do_not_divide(tiny: Path, tmp_path: Path) -> None:
    model = replace(read_model_config(convert(tiny, tmp_path)), hidden_size=100)
    (rejection,) = OpenVinoBackend().check(request_for(model, quantization="int4"))
    assert "multiples of 64" in rejection.reason


def test_batch_invariance_is_refused_for_padded_layers(tiny: Path, tmp_path: Path) -> None:
    model = replace(read_model_config(convert(tiny, tmp_path)), attn_logit_softcapping=30.0)
    assert OpenVinoBackend().check(request_for(model)) == []
    (rejection,) = OpenVinoBackend().check(request_for(model, batch_invariant=True))
    assert "soft-capping" in rejection.reason


def test_quantised_engines_compute_in_float32_and_round_only_if_allowed() -> None:
    def group_size(*fields: object) -> str:
        properties = Precision(*fields).properties(ov.Type.f32)  # type: ignore[arg-type]
        assert properties["INFERENCE_PRECISION_HINT"] == "f32"
        return properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"]

    assert group_size("float32", "int8") == "0"
    assert group_size("bfloat16", "int8") == "32"
    assert group_size("float32", "int8", True) == "32"  # the rows must not depend on the batch
    assert group_size("float32", "none", True) == "0"
    assert group_size("bfloat16", "int8", False, False) == "0"  # slower without instructions
    assert group_size("bfloat16", "int8", True, False) == "32"


def test_a_bfloat16_engine_has_a_cache_of_16_bits() -> None:
    assert Precision("bfloat16", "none").cache_type(["FP32", "BF16"]) == ov.Type.bf16
    assert Precision("bfloat16", "none").cache_type(["FP32"]) == ov.Type.f16
    assert Precision("bfloat16", "int8").cache_type(["FP32", "BF16"]) == ov.Type.f16
    assert Precision("float32", "int8").cache_type(["FP32", "BF16"]) == ov.Type.f32


def test_the_pool_has_room_for_all_sequences_or_the_configured_tokens(
    tiny: Path, tmp_path: Path
) -> None:
    model = read_model_config(convert(tiny, tmp_path))

    def tokens(**changes: object) -> int:
        return (
            OpenVinoBackend().footprint(request_for(model, max_batch_size=4, **changes)).kv_tokens
        )

    pool = tokens()
    assert 4 * 200 <= pool <= 4 * (200 + 2 * 32)
    drafting = tokens(method="medusa", draft_nodes=64)
    assert pool + 4 * 64 <= drafting <= pool + 4 * 64 + 32
    small = tokens(kv_cache_tokens=300)
    assert 300 <= small < pool
