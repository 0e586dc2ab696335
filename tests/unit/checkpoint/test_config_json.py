"""config.json is read as transformers reads it, or refused in one sentence with key and file."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from specpipe.checkpoint.convert import Conversion, survey
from specpipe.checkpoint.end_tokens import end_tokens
from specpipe.checkpoint.families import FAMILIES, MODEL_TYPES, TEXT_OF, find_family, read_facts
from specpipe.checkpoint.quantized.foreign import find_foreign
from specpipe.checkpoint.source import Source, open_source
from specpipe.checkpoint.tokenizer import special_ids
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.core.model import ModelConfig
from tests.helpers.families import NEW_ROPE, WORLDS, WRONG, YARN, config_of, with_wrong_values

FILE = Path("folder/config.json")
CASES = [(name, variant) for name, world in WORLDS.items() for variant in world.variants]


def read(facts: dict[str, Any]) -> ModelConfig:
    return read_facts(facts, "float32", FILE)


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_every_value_gives_facts_or_one_sentence_with_key_and_file(
    architecture: str, variant: str
) -> None:
    facts = config_of(architecture, variant)
    assert read(facts)
    for key, wrong in with_wrong_values(facts):
        try:
            read(wrong)
        except (ConfigError, Unsupported) as error:
            assert str(FILE) in error.message and len(error.message) < 300
            assert any(name in error.message for name in (key, *facts)), (key, error.message)
            assert "\n" not in error.message


def test_every_family_is_tried() -> None:
    assert set(WORLDS) == set(FAMILIES) == set(MODEL_TYPES.values()) - set(TEXT_OF)


# Keys that decide nothing here, or that decide which class is read.
NOT_READ = ("architectures", "model_type", "transformers_version")
# absent keys whose default differs between transformers 4 and 5: refused
COHERE = "CohereForCausalLM"
DIFFERS = {("Qwen2MoeForCausalLM", "window"): ("layer_types",)} | {
    (COHERE, variant): ("rope_parameters" if NEW_ROPE else "rope_theta",)
    for variant in WORLDS[COHERE].variants
}


def completed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json with what transformers' config class assumes for absent keys."""
    config = transformers.AutoConfig.for_model(**facts)
    whole = json.loads(config.to_json_string(use_diff=False))
    return {**whole, "architectures": facts["architectures"]}


@pytest.mark.parametrize(
    ("architecture", "variant"), [case for case in CASES if case[0] != "InternLM2ForCausalLM"]
)
def test_an_absent_key_has_the_default_of_transformers_config_class(
    architecture: str, variant: str
) -> None:
    facts = config_of(architecture, variant)
    differs = DIFFERS.get((architecture, variant), ())
    for key in differs:
        with pytest.raises(Unsupported, match=f"no .*{key}.*; transformers 4 and 5 differ"):
            read({k: v for k, v in facts.items() if k != key})
    for key in facts.keys() - {*NOT_READ, *differs}:
        without = {k: v for k, v in facts.items() if k != key}
        try:
            judged = completed(without)
        except Exception as error:  # transformers' validators raise many kinds
            with pytest.raises((ConfigError, Unsupported)):
                read(without)
                pytest.fail(f"{key}: transformers refuses this: {error}")
            continue
        try:
            assert read(without) == read(judged), key
        except (ConfigError, Unsupported):  # sizes that do not go together: so is the whole
            with pytest.raises((ConfigError, Unsupported)):
                read(judged)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_of_no_key_but_its_type_is_that_of_the_class(name: str) -> None:
    if name == "InternLM2ForCausalLM":
        assert read({"model_type": "internlm2"}).attn_bias
        return
    kind = next(kind for kind, architecture in MODEL_TYPES.items() if architecture == name)
    if name == COHERE:
        with pytest.raises(Unsupported, match="has no rope_theta"):
            read({"model_type": kind})
        return
    facts = {"model_type": kind, "architectures": [name]}
    assert read({"model_type": kind}) == read(completed(facts))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", "64", "'hidden_size' is '64': must be a positive whole number"),
        ("hidden_size", True, "'hidden_size' is True: must be a positive whole number"),
        ("rms_norm_eps", None, "'rms_norm_eps' is None: must be a number"),
        ("rms_norm_eps", [], r"'rms_norm_eps' is \[\]: must be a number"),
        ("num_hidden_layers", 10**30, "'num_hidden_layers' is 1.*0: must be a .* at most 10000"),
        ("architectures", 5, "'architectures' is 5: must be a list of names"),
        ("model_type", ["llama"], r"'model_type' is \['llama'\]: must be a name"),
        ("model_type", "mistral", "which transformers reads as MistralForCausalLM"),
        ("rope_scaling", "linear", "'rope_scaling' is 'linear': must be an object"),
        ("rope_theta", 0, "'rope_theta' is 0: must be a number above 0"),
        ("rope_theta", None, "'rope_theta' is None: must be a number above 0"),
        ("attention_bias", "no", "'attention_bias' is 'no': must be true or false"),
        ("hidden_act", ["silu"], r"'hidden_act' is \['silu'\]: must be a name"),
        ("head_dim", 15, "15 of a head's 15 values would be rotated: must be an even number"),
        ("vocab_size", ["x" * 500], r"'vocab_size' is \['xxx.*\.\.\.: must be"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_file(key: str, value: object, words: str) -> None:
    facts = {k: v for k, v in config_of("LlamaForCausalLM").items() if "rope" not in k}
    with pytest.raises(ConfigError, match=words) as caught:
        read({**facts, key: value})
    assert str(caught.value).startswith(f"{FILE}: ") and len(str(caught.value)) < 300


def test_a_negative_window_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sliding_window' is -1: must be a whole number"):
        read({**config_of("MistralForCausalLM"), "sliding_window": -1})


def test_keys_that_may_be_null_are() -> None:
    facts = config_of("LlamaForCausalLM")
    for key in ("head_dim", "rope_scaling", "sliding_window", "num_key_value_heads"):
        assert read({**facts, key: None})


def test_a_config_without_an_architecture_is_read_by_its_model_type() -> None:
    facts = config_of("Qwen2ForCausalLM")
    for names in ([], None):
        assert read({**facts, "architectures": names}) == read(facts)
    with pytest.raises(Unsupported, match=r"none named; model_type 'new'.*folder/config.json"):
        find_family({"architectures": [], "model_type": "new"}, FILE)


def test_an_architecture_without_a_converter_names_the_way_that_works() -> None:
    with pytest.raises(Unsupported, match="NewForCausalLM has no converter") as caught:
        read({"architectures": ["NewForCausalLM"]})
    assert "backend: llmapi" in str(caught.value) and "families/" not in str(caught.value)


# Every spelling of one rule: what lies in `rope_scaling` and what next to it.
LLAMA3 = {"factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
          "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"factor": 4}
BASE = 500000
SPELLINGS = [
    lambda kind, rule: {"rope_theta": BASE, "rope_scaling": {"rope_type": kind, **rule}},
    lambda kind, rule: {"rope_theta": BASE, "rope_scaling": {"type": kind, **rule}},
    lambda kind, rule: {
        "rope_theta": BASE,
        "rope_scaling": {"rope_type": kind, "type": "x", **rule},
    },
    lambda kind, rule: {"rope_scaling": {"rope_type": kind, "rope_theta": BASE, **rule}},
    lambda kind, rule: {"rope_parameters": {"rope_type": kind, "rope_theta": BASE, **rule}},
    lambda kind, rule: {"rope_theta": BASE, "rope_parameters": {"rope_type": kind, **rule}},
    lambda kind, rule: {
        "rope_theta": BASE,
        "rope_scaling": {"rope_type": kind, **rule},
        "rope_parameters": {"rope_type": kind, "rope_theta": BASE, **rule},
    },
]
PLAIN = {k: v for k, v in config_of("LlamaForCausalLM").items() if "rope" not in k}


@pytest.mark.skipif(not NEW_ROPE, reason="transformers 4 reads only some of the spellings")
@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("linear", LINEAR),
        ("llama3", LLAMA3),
        ("llama3", {k: v for k, v in LLAMA3.items() if "original" not in k}),
        ("yarn", {k: v for k, v in YARN.items() if k != "rope_type"}),
        ("yarn", {"factor": None, "original_max_position_embeddings": 64}),
        ("yarn", {"factor": 4, "beta_fast": None, "mscale": 0.707}),
    ],
)
def test_every_spelling_of_rope_is_read_as_transformers_reads_it(
    spelling: int, kind: str, rule: dict[str, Any]
) -> None:
    facts = {**PLAIN, **SPELLINGS[spelling](kind, rule)}
    model, judge = read(facts), completed(facts)["rope_parameters"]
    assert model.rotary_base == judge["rope_theta"] == BASE
    scaling = dict(model.rotary_scaling or {})
    assert scaling["rope_type"] == judge["rope_type"]
    assert scaling.get("type", kind) == kind  # upstream reads it first
    for key, value in judge.items():
        if key in scaling and key != "type" and value is not None:
            assert scaling[key] == pytest.approx(value), key
    assert all(isinstance(scaling[key], float) for key in ("factor",))
    needed = {"factor", "original_max_position_embeddings"} - ({"linear": {
        "original_max_position_embeddings"}}.get(kind, set()))  # fmt: skip
    assert needed <= scaling.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
         "'rope_parameters.rope_theta' is 500000 and 'rope_theta' is 10000"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0},
          "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "differ"),
        ({"rope_parameters": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}},
         "'rope_parameters.high_freq_factor' is 1.0: must be a number above low_freq_factor, 1"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
         "'rope_parameters.low_freq_factor' is missing"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'rope_scaling.factor' is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "'rope_scaling.factor' is 0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}},
         "'rope_scaling.factor' is '4': must be a number"),
        ({"original_max_position_embeddings": 32,
          "rope_scaling": {"rope_type": "yarn", "factor": 2.0,
                           "original_max_position_embeddings": 64}}, "is 32 and .* is 64"),
        ({"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
         "'rope_theta' is 1: must be a number above 1"),
    ],
)  # fmt: skip
def test_contradictions_and_impossible_factors_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        read({**PLAIN, **changes})


def test_yarn_extends_the_positions_of_a_model() -> None:
    rule = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert read({**PLAIN, "rope_scaling": rule}).max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("more", "limit"),
    [({}, ""), ({"attention_factor": 1.5}, "attention factor"), ({"truncate": False}, "ramp")],
)
def test_plan_knows_what_upstream_does_not_read_of_yarn(more: dict[str, Any], limit: str) -> None:
    rule = {"rope_type": "yarn", "factor": 4.0, **more}
    limits = read({**PLAIN, "rope_scaling": rule}).upstream_limits
    assert limit in " ".join(limits) and bool(limits) == bool(limit)


def test_the_first_releases_of_phi3_call_longrope_otherwise() -> None:
    facts = config_of("Phi3ForCausalLM", "long rope")
    rule = facts.pop("rope_parameters" if NEW_ROPE else "rope_scaling")
    rule = {k: v for k, v in rule.items() if k not in ("type", "rope_type")}
    for name in ("su", "yarn", "longrope"):
        found = read({**facts, "rope_scaling": {**rule, "type": name}})
        assert (found.rotary_scaling or {})["rope_type"] == "longrope"
    with pytest.raises(ConfigError, match="short_factor' is .* a list of 8 positive numbers"):
        read({**facts, "rope_scaling": {**rule, "type": "su", "short_factor": [1.0]}})


# Keys that no family reads, but other parts of a plan and of a conversion.
ELSEWHERE = (
    "architectures", "quantization_config", "eos_token_id", "bos_token_id", "pad_token_id",
    "text_config", "tie_word_embeddings", "model_type", "num_nextn_predict_layers",
)  # fmt: skip
INNER = ({"quant_method": "gptq"}, {"quant_method": "awq"}, {"quant_method": "modelopt"}, {})


def examine(source: Source) -> None:
    """Read what a plan and a conversion read of a config.json."""
    survey(source, "float32")
    find_foreign(source)
    end_tokens(source, 0)
    special_ids(source)
    Conversion(source, "float32").options()


def test_every_value_of_other_keys_is_a_sentence_in_plan_and_convert(tiny: Path) -> None:
    source = open_source(tiny)
    values = [(key, value) for key in ELSEWHERE for value in WRONG]
    values += [
        ("quantization_config", {**inner, key: value})
        for inner in INNER
        for key in ("quant_method", "bits", "group_size", "desc_act", "version", "quant_algo")
        for value in WRONG
    ]
    for key, value in values:
        try:
            examine(replace(source, hf_config={**source.hf_config, key: value}))
        except (ConfigError, Unsupported) as error:
            assert str(tiny) in error.message or key in error.message, (key, value)


@pytest.mark.parametrize("content", [{"quantization": "FP8"}, {"quantization": [1]}, {}])
def test_a_wrong_description_of_the_quantization_is_a_sentence(
    content: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "hf_quant_config.json").write_text(json.dumps(content))
    with pytest.raises((ConfigError, Unsupported), match=str(copy)):
        examine(open_source(copy))
