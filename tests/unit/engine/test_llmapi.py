"""The `llmapi` backend: model.yaml in the spelling of each release, and what has none."""

import json
from pathlib import Path

import pytest
import yaml

from specpipe.config.method_parts import SuffixOptions
from specpipe.core.divisibility import Parallel
from specpipe.engine.backend import BuildRequest
from specpipe.engine.llmapi import releases as releases_module
from specpipe.engine.llmapi.backend import LlmApiBackend
from specpipe.engine.llmapi.releases import releases
from tests.helpers.llm_arguments import unknown_fields
from tests.helpers.trtllm_build import request

BACKEND = LlmApiBackend()
MODELS = {"target": "/models/target", "draft": "/models/draft"}


def model_yaml(**changes: object) -> dict:
    """Return the parsed model.yaml of a request."""
    (text,) = BACKEND.files(request(sources=MODELS, **changes)).values()
    return yaml.safe_load(text)


def listed(**changes: object) -> dict[str, object]:
    """Return the section of a method with four draft tokens."""
    asked = {"draft_nodes": 4, "max_matching_ngram_size": 3, **changes}
    section: dict[str, object] = model_yaml(**asked)["speculative_config"]
    return section


DRAFT = "/models/draft"


@pytest.mark.parametrize(
    ("release", "method", "section"),
    [
        ("1.2.1", "draft_model", {"decoding_type": "DraftTarget", "max_draft_len": 4,
                                  "speculative_model_dir": DRAFT}),
        ("1.4.0rc4", "draft_model", {"decoding_type": "Draft_Target", "max_draft_len": 4,
                                     "speculative_model": DRAFT}),
        ("1.2.1", "eagle3", {"decoding_type": "Eagle", "max_draft_len": 4,
                             "speculative_model_dir": DRAFT, "allow_advanced_sampling": True}),
        ("1.1.0", "eagle3", {"decoding_type": "Eagle", "max_draft_len": 4,
                             "speculative_model_dir": DRAFT}),
        ("1.3.0rc22", "eagle3", {"decoding_type": "Eagle3", "max_draft_len": 4,
                                 "speculative_model": DRAFT}),
        ("1.4.0rc4", "eagle3", {"decoding_type": "Eagle3", "max_draft_len": 4,
                                "speculative_model": DRAFT}),
        ("1.2.1", "prompt_lookup", {"decoding_type": "NGram", "max_draft_len": 4,
                                    "max_matching_ngram_size": 3}),
        ("1.2.1", "mtp", {"decoding_type": "MTP", "num_nextn_predict_layers": 4,
                          "allow_advanced_sampling": True}),
        ("1.4.0rc4", "mtp", {"decoding_type": "MTP", "max_draft_len": 4}),
        ("1.4.0rc4", "pard", {"decoding_type": "PARD", "max_draft_len": 4,
                              "speculative_model": DRAFT}),
        ("1.3.0rc29", "dflash", {"decoding_type": "DFlash", "max_draft_len": 4,
                                 "speculative_model": DRAFT}),
        ("1.3.0rc27", "suffix_automaton", {"decoding_type": "SA", "max_draft_len": 4,
                                           "max_matching_ngram_size": 3}),
    ],
)  # fmt: skip
def test_a_method_is_spelt_as_its_release_reads_it(
    release: str, method: str, section: dict[str, object]
) -> None:
    assert listed(release=release, method=method) == section


NEWEST = "1.4.0rc4"


def newest(**changes: object) -> BuildRequest:
    """Return a request for the newest release, which Triton does not serve."""
    return request(release=NEWEST, front="trtllm_serve", **changes)


JOINED = {"sa_config": SuffixOptions(6, enable_global_pool=True)}


@pytest.mark.parametrize(
    ("method", "changes", "fields"),
    [
        ("eagle3", JOINED, {"sa_config": {"threshold": 6, "enable_global_pool": True}}),
        ("mtp", JOINED, {"sa_config": {"threshold": 6, "enable_global_pool": True}}),
        ("pard", {"use_rejection_sampling": True}, {"use_rejection_sampling": True}),
        ("dflash", {"draft_len_schedule": {"1": 4, "8": 0}}, {"draft_len_schedule": {1: 4, 8: 0}}),
        ("suffix_automaton", {"max_matching_ngram_size": None}, {"max_matching_ngram_size": -1}),
        ("suffix_automaton", {"enable_global_pool": True}, {"enable_global_pool": True}),
        ("eagle3", {"tree": "dynamic", "draft_len_per_beam": 3, "num_beams": 2},
         {"use_dynamic_tree": True, "dynamic_tree_max_topK": 2, "max_draft_len": 3,
          "max_total_draft_tokens": 4}),
    ],
)  # fmt: skip
def test_options_of_newer_releases_are_handed_on(
    method: str, changes: dict[str, object], fields: dict[str, object]
) -> None:
    section = listed(release=NEWEST, method=method, **changes)
    assert section.items() >= fields.items()
    refused = BACKEND.check(request(release="1.2.1", method=method, draft_nodes=4, **changes))
    known = method in releases()["1.2.1"].methods
    assert any(("has no" if known else "does not support") in r.reason for r in refused)
    assert BACKEND.check(newest(method=method, draft_nodes=4, **changes)) == []


@pytest.mark.parametrize("release", releases())
def test_upstream_knows_every_key_that_is_written(release: str) -> None:
    for method in releases()[release].method_names:
        asked = {"release": release, "method": method, "draft_nodes": 4, "max_concurrency": 8}
        values = model_yaml(**asked, max_input_len=9000, max_seq_len=9999)
        del values["triton_config"]  # read by the Triton model, not handed on
        assert unknown_fields(values, release) == []


def test_the_judge_of_fields_sees_what_upstream_would_refuse() -> None:
    wrong = {"max_tokens": 1, "kv_cache_config": {"size": 1},
             "speculative_config": {"decoding_type": "Eagle3", "max_draft_len": 1, "x": 1,
                                    "sa_config": {"y": 1}}}  # fmt: skip
    assert unknown_fields(wrong, NEWEST) == ["max_tokens", "size", "x", "y"]
    assert unknown_fields({"speculative_config": {"decoding_type": "Eagle3"}}, "1.2.1")


def test_every_release_names_its_sources_and_what_is_inferred() -> None:
    """A row without a source could not be checked again."""
    rows = json.loads(Path(releases_module.__file__).with_name("releases.json").read_text())
    for name, row in rows["releases"].items():
        assert row["sources"] and all(len(source) > 20 for source in row["sources"]), name
        assert isinstance(row["inferred"], list)


def test_speculation_over_pipeline_stages_is_for_older_releases() -> None:
    stages = {"draft_nodes": 3, "parallel": Parallel(1, 2)}
    for release in (request(release="1.2.1", method="eagle3", **stages),
                    newest(method="eagle3", **stages)):  # fmt: skip
        (refused,) = BACKEND.check(release)
        assert "does not run eagle3 over pipeline stages" in refused.reason
    assert BACKEND.check(request(release="1.1.0", method="eagle3", **stages)) == []
    lookup = {"method": "prompt_lookup", "max_matching_ngram_size": 3, **stages}
    assert BACKEND.check(request(release="1.2.1", **lookup)) == []


def test_long_prompts_are_read_in_chunks() -> None:
    values = model_yaml(max_input_len=120_000, max_seq_len=131_072, method="eagle3", draft_nodes=3)
    assert values["enable_chunked_prefill"] is True and values["max_num_tokens"] == 8192
    assert "enable_chunked_prefill" not in model_yaml()


def test_a_revision_is_that_of_model_and_tokenizer() -> None:
    values = model_yaml(revisions={"target": "v2"})
    assert (values["revision"], values["tokenizer_revision"]) == ("v2", "v2")
    assert "revision" not in model_yaml()


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
    one = model_yaml(release=NEWEST, method="draft_model", draft_nodes=4)
    assert "disable_overlap_scheduler" not in one and one["kv_cache_config"]["enable_block_reuse"]


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
