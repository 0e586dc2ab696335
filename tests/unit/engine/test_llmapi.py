"""The `llmapi` backend: model.yaml in the spelling of each release, and what has none."""

from pathlib import Path

import pytest
import yaml

from specpipe.core.divisibility import Parallel
from specpipe.engine.llmapi.backend import LlmApiBackend
from tests.helpers.trtllm_build import request

BACKEND = LlmApiBackend()
MODELS = {"target": "/models/target", "draft": "/models/draft"}

# What upstream's `llmapi/llm_args.py` takes; every other key is an error there (`extra: forbid`).
# fmt: off
_TABLE = {"MTP", "Medusa", "Eagle", "Lookahead", "NGram", "DraftTarget", "SaveState",
          "UserProvided", "AUTO"}  # keys of the table in `from_dict`, which ends with 1.2
_LITERALS = {"MTP", "Eagle", "Eagle3", "NGram", "Draft_Target", "SaveState", "User_Provided",
             "PARD", "SA", "DFlash", "AUTO"}  # of the records of 1.3
DECODING_TYPES = {"1.1.0": _TABLE, "1.2.1": _TABLE, "1.3.0rc22": _LITERALS}
ARGUMENTS = {"model", "backend", "dtype", "tensor_parallel_size", "pipeline_parallel_size",
             "max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "kv_cache_config",
             "speculative_config", "disable_overlap_scheduler", "revision", "tokenizer_revision"}
DRAFT_FIELDS = {"max_draft_len", "max_concurrency"}  # of `DecodingBaseConfig` in every release
NEWER_FIELDS = {"1.2.1": {"allow_advanced_sampling"}, "1.3.0rc22": {"allow_advanced_sampling"}}
FIELDS = {"DraftTarget": {"speculative_model_dir"}, "Draft_Target": {"speculative_model"},
          "Eagle": {"speculative_model_dir"}, "Eagle3": {"speculative_model"},
          "NGram": {"max_matching_ngram_size"}, "MTP": {"num_nextn_predict_layers"}}
# fmt: on


def model_yaml(**changes: object) -> dict:
    """Return the parsed model.yaml of a request."""
    (text,) = BACKEND.files(request(sources=MODELS, **changes)).values()
    return yaml.safe_load(text)


@pytest.mark.parametrize(
    ("release", "method", "section"),
    [
        ("1.2.1", "draft_model", {"decoding_type": "DraftTarget", "max_draft_len": 4,
                                  "speculative_model_dir": "/models/draft"}),
        ("1.3.0rc22", "draft_model", {"decoding_type": "Draft_Target", "max_draft_len": 4,
                                      "speculative_model": "/models/draft"}),
        ("1.2.1", "eagle3", {"decoding_type": "Eagle", "max_draft_len": 4,
                             "speculative_model_dir": "/models/draft",
                             "allow_advanced_sampling": True}),
        ("1.1.0", "eagle3", {"decoding_type": "Eagle", "max_draft_len": 4,
                             "speculative_model_dir": "/models/draft"}),
        ("1.3.0rc22", "eagle3", {"decoding_type": "Eagle3", "max_draft_len": 4,
                                 "speculative_model": "/models/draft",
                                 "allow_advanced_sampling": True}),
        ("1.2.1", "prompt_lookup", {"decoding_type": "NGram", "max_draft_len": 4,
                                    "max_matching_ngram_size": 3}),
        ("1.2.1", "mtp", {"decoding_type": "MTP", "num_nextn_predict_layers": 4,
                          "allow_advanced_sampling": True}),
    ],
)  # fmt: skip
def test_a_method_is_spelt_as_its_release_reads_it(
    release: str, method: str, section: dict[str, object]
) -> None:
    values = model_yaml(release=release, method=method, draft_nodes=4, max_matching_ngram_size=3)
    assert values["speculative_config"] == section
    assert values["model"] == "/models/target" and values["backend"] == "pytorch"


@pytest.mark.parametrize("release", DECODING_TYPES)
@pytest.mark.parametrize("method", ["none", "draft_model", "prompt_lookup", "eagle3", "mtp"])
def test_upstream_knows_every_key_that_is_written(release: str, method: str) -> None:
    values = model_yaml(release=release, method=method, draft_nodes=4, max_concurrency=8)
    del values["triton_config"]  # read by the Triton model, not handed on
    assert set(values) <= ARGUMENTS
    section = values.get("speculative_config", {})
    kind = section.pop("decoding_type", None)
    assert kind is None or kind in DECODING_TYPES[release]
    known = DRAFT_FIELDS | NEWER_FIELDS.get(release, set()) | FIELDS.get(kind, set())
    assert set(section) <= known


def test_a_revision_is_that_of_model_and_tokenizer() -> None:
    values = model_yaml(revisions={"target": "v2"})
    assert (values["revision"], values["tokenizer_revision"]) == ("v2", "v2")
    assert "revision" not in model_yaml() and set(values) - {"triton_config"} <= ARGUMENTS


def test_plain_decoding_has_no_speculation() -> None:
    assert "speculative_config" not in model_yaml()


def test_sizes_ranks_and_cache_are_those_of_the_request() -> None:
    values = model_yaml(
        parallel=Parallel(4),
        kv_cache_quantization="fp8",
        max_batch_size=64,
        method="prompt_lookup",
        draft_nodes=7,
    )
    assert values["tensor_parallel_size"] == 4 and values["max_batch_size"] == 64
    assert (values["max_input_len"], values["max_seq_len"]) == (1024, 2048)
    assert values["kv_cache_config"]["dtype"] == "fp8"
    assert values["max_num_tokens"] >= 64 * 8


def test_triton_is_told_not_to_batch_and_whether_to_stream() -> None:
    assert model_yaml()["triton_config"] == {"max_batch_size": 0, "decoupled": True}
    assert model_yaml(streams=False)["triton_config"]["decoupled"] is False


def test_concurrency_limits_are_handed_on() -> None:
    values = model_yaml(method="eagle3", draft_nodes=3, max_concurrency=16)
    assert values["speculative_config"]["max_concurrency"] == 16


def test_two_models_run_one_after_the_other() -> None:
    assert model_yaml(method="draft_model", draft_nodes=4)["disable_overlap_scheduler"] is True
    assert "disable_overlap_scheduler" not in model_yaml(method="eagle3", draft_nodes=4)


def test_building_writes_the_planned_file_and_nothing_else(tmp_path: Path) -> None:
    asked = request(sources=MODELS, method="eagle3", draft_nodes=3)
    BACKEND.build(asked, tmp_path / "no checkpoint", tmp_path)
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == dict(BACKEND.files(asked))


@pytest.mark.parametrize(
    ("changes", "reason", "hint"),
    [
        (
            {"method": "medusa"},
            "medusa needs TensorRT-LLM engines",
            "up to 1.2.1, container 26.04-26.07",
        ),
        ({"method": "lookahead"}, "lookahead needs TensorRT-LLM engines", "or backend: openvino"),
        ({"method": "hybrid"}, "the LLM API does not support method hybrid", "eagle3"),
        ({"release": "0.18.2"}, "no profile of the LLM API", "backend: tensorrt"),
        ({"release": "1.3.0rc22"}, "knows no Triton container", "to use 1.2.1"),
        ({"release": "7"}, "engine.tensorrt_llm is '7'", "known for this backend: 1.2.1, "),
        ({"quantization": "int8"}, "does not quantize it to int8", "export of ModelOpt"),
        ({"kv_cache_quantization": "int8"}, "not support an int8 KV cache", "fp8 or none"),
        ({"kv_cache_quantization": "fp8", "gpu": "A10", "sm": 86}, "does not support fp8", "none"),
        ({"gpu": None, "sm": None}, "engine.gpu is not given", "H100-SXM"),
        ({"revisions": {"draft": "v2"}}, "speculation.draft.revision is v2", "to the folder"),
        ({"parallel": Parallel(3)}, "do not divide by engine.tp_size, which is 3", "tp_size"),
    ],
)
def test_refused(changes: dict[str, object], reason: str, hint: str) -> None:
    found = BACKEND.check(request(**changes))
    assert any(reason in r.reason and hint in r.hint for r in found), found


def test_what_it_can_do_is_not_refused() -> None:
    for method in ("none", "draft_model", "prompt_lookup", "eagle3", "mtp"):
        assert BACKEND.check(request(method=method, draft_nodes=3)) == []
