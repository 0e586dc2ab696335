"""Configs that name a class which is read here, and are not of it, or of no text generator."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from specpipe.checkpoint.families import FAMILIES, MODEL_TYPES, read_facts
from specpipe.checkpoint.served import read_served
from specpipe.core.errors import ConfigError, Unsupported
from tests.helpers.families import WORLDS, config_of
from tests.helpers.tokenizer_shapes import write_json

FILE = Path("config.json")
# As Phi-2 was first published: keys that transformers' class does not read.
FIRST_PHI = {
    "architectures": ["PhiForCausalLM"], "model_type": "phi-msft", "vocab_size": 51200,
    "n_positions": 2048, "n_embd": 2560, "n_layer": 32, "n_head": 32, "n_head_kv": None,
    "n_inner": None, "rotary_dim": 32, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-05, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_model_type_of_the_models_own_code_is_not_read_as_the_class(tmp_path: Path) -> None:
    """Every size would be a default of the class; transformers does not read it either."""
    with pytest.raises(Unsupported, match="'model_type' is 'phi-msft', which is not that of Phi"):
        read_facts(FIRST_PHI, "bfloat16", FILE)
    write_json(tmp_path / "config.json", FIRST_PHI)
    with pytest.raises(ValueError, match="phi-msft"):
        transformers.AutoConfig.from_pretrained(tmp_path)
    served = read_served(FIRST_PHI, "bfloat16", FILE)
    assert not served.is_known
    assert (served.model.hidden_size, served.model.num_hidden_layers) == (2560, 32)


def variant_of(name: str) -> dict[str, Any]:
    return config_of(name, next(iter(WORLDS[name].variants)))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_keeps_its_own_model_type_and_may_have_none(name: str) -> None:
    facts = variant_of(name)
    kind = next(kind for kind, named in MODEL_TYPES.items() if named == name)
    for types in ({"model_type": kind}, {}):
        plain = {key: value for key, value in facts.items() if key != "model_type"}
        assert read_facts({**plain, **types}, "bfloat16", FILE)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_whose_tokens_see_later_ones_is_refused_for_every_backend(name: str) -> None:
    facts = {**variant_of(name), "is_causal": False}
    for read in (read_facts, read_served):
        with pytest.raises(ConfigError, match="'is_causal' is false: every token attends to"):
            read(facts, "bfloat16", FILE)
    assert read_facts({**facts, "is_causal": True}, "bfloat16", FILE)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4 does not read is_causal"
)
def test_transformers_lets_tokens_of_such_a_model_see_later_ones() -> None:
    import torch

    facts = {k: v for k, v in variant_of("Qwen2ForCausalLM").items() if k != "architectures"}
    first = {}
    for causal in (True, False):
        config = transformers.AutoConfig.for_model(**facts, is_causal=causal)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            first[causal] = [model(torch.tensor([[5, n]])).logits[0, 0] for n in (6, 7)]
    assert torch.equal(*first[True]) and not torch.equal(*first[False])


@pytest.mark.parametrize(
    "name",
    ["LlamaForSequenceClassification", "InternLM2ForRewardModel", "BertForMaskedLM", "BertModel"],
)
def test_a_model_that_generates_no_text_is_named(name: str) -> None:
    facts = {**variant_of("LlamaForCausalLM"), "architectures": [name]}
    for read in (read_facts, read_served):
        with pytest.raises(ConfigError, match=f"{name} generates no text") as caught:
            read(facts, "bfloat16", FILE)
        assert "give a model for text generation" in str(caught.value)


@pytest.mark.parametrize(("key", "size"), [("seq_length", 32768), ("n_positions", 2048)])
def test_the_positions_of_an_unknown_model_are_found(key: str, size: int) -> None:
    facts = {"architectures": ["ChatGLMModel"], "hidden_size": 64, key: size}
    assert read_served(facts, "bfloat16", FILE).model.max_position_embeddings == size
