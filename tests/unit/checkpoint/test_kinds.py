"""A config.json with wrong values is refused by key, whatever architecture it names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.families import FAMILIES, find_family
from specpipe.checkpoint.families.kinds import require_kinds
from specpipe.core.errors import ConfigError, SpecpipeError, Unsupported
from specpipe.core.model import ModelConfig
from tests.families import WORLDS, config_of

HERE = Path("model.gguf")  # no folder: messages begin with the file
WRONG = (None, True, -1, 0, 1, 1.5, float("inf"), float("nan"), 10**30, "", "x", [], [[]], [None],
         {}, {"a": 1}, "null", 7)  # fmt: skip


def read(facts: dict[str, Any]) -> ModelConfig:
    require_kinds(facts, HERE)
    return find_family(facts).read_config(facts, "float32")


def changed(facts: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the facts with every value replaced by wrong ones, and with every key left out."""
    for key, old in facts.items():
        yield key, {k: v for k, v in facts.items() if k != key}
        for value in WRONG:
            yield key, {**facts, key: value}
            for inner in old if isinstance(old, dict) else ():
                yield f"{key}.{inner}", {**facts, key: {**old, inner: value}}


@pytest.mark.parametrize(
    ("architecture", "variant"),
    [(name, variant) for name, world in WORLDS.items() for variant in world.variants],
)
def test_no_value_in_a_config_ends_in_anything_but_facts_or_a_sentence(
    architecture: str, variant: str
) -> None:
    facts = config_of(architecture, variant)
    assert read(facts)
    for key, wrong in changed(facts):
        try:
            read(wrong)
        except SpecpipeError as error:
            assert str(error), key


def test_every_family_is_tried() -> None:
    assert set(WORLDS) == set(FAMILIES)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", "64", "'hidden_size' is '64': must be a positive whole number"),
        ("hidden_size", True, "'hidden_size' is True: must be a positive whole number"),
        ("rms_norm_eps", None, "'rms_norm_eps' is None: must be a number"),
        ("rms_norm_eps", [], r"'rms_norm_eps' is \[\]: must be a number"),
        ("num_hidden_layers", 10**30, "'num_hidden_layers' is 1.*0: must be a .* at most 10000"),
        ("sliding_window", -1, "'sliding_window' is -1: must be a whole number"),
        ("architectures", 5, "'architectures' is 5: must be a list of names"),
        ("rope_scaling", "linear", "'rope_scaling' is 'linear': must be an object"),
        ("rope_scaling", {"factor": "4"}, "'rope_scaling.factor' is '4': must be a number"),
        ("vocab_size", ["x" * 500], r"'vocab_size' is \['xxx.*\.\.\.: must be"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_file(
    key: str, value: object, words: str, tmp_path: Path
) -> None:
    facts = {**config_of("LlamaForCausalLM"), key: value}
    with pytest.raises(ConfigError, match=words) as caught:
        require_kinds(facts, tmp_path)
    assert (
        str(caught.value).startswith(f"{tmp_path}/config.json: ") and len(str(caught.value)) < 300
    )


def test_keys_that_may_be_null_are() -> None:
    facts = config_of("LlamaForCausalLM")
    for key in ("head_dim", "rope_scaling", "sliding_window", "quantization_config"):
        require_kinds(json.loads(json.dumps({**facts, key: None})), HERE)


def test_a_config_without_an_architecture_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="none named"):
        read({"architectures": []})
