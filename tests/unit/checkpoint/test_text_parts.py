"""A text model within one for images: its part is converted, under the names of both layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specpipe.checkpoint.convert import Conversion, survey
from specpipe.checkpoint.families import read_facts
from specpipe.checkpoint.quantized.formats import PLAIN, Quantizing
from specpipe.checkpoint.source import open_source
from specpipe.core.artifacts import read_model_config
from specpipe.core.errors import ConfigError, Unsupported
from specpipe.validate.reference import Reference
from tests.helpers.engine_steps import item
from tests.helpers.families import config_of
from tests.helpers.models import make_tokenizer

WHOLE, TEXT = "Gemma3ForConditionalGeneration", "Gemma3ForCausalLM"
# of the hub's files, of those that transformers 5 names, and of a text model by itself
LAYOUTS = {"hub": "language_model.model.", "new": "model.language_model.", "alone": "model."}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def text_config() -> dict[str, Any]:
    facts = config_of(TEXT, "linear rope")
    return {k: v for k, v in facts.items() if k not in ("architectures", "dtype", "torch_dtype")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random Gemma 3 for images, as the installed transformers saves it."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    config = transformers.Gemma3Config(
        text_config=text_config(), vision_config=VISION, mm_tokens_per_image=4
    )
    torch.manual_seed(3)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def rename(source: Path, folder: Path, layout: str) -> Path:
    """Write the model with the names of a layout; alone: without what sees."""
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        theirs = next((p for p in list(LAYOUTS.values())[:2] if name.startswith(p)), None)
        if theirs is not None:
            tensors[LAYOUTS[layout] + name.removeprefix(theirs)] = tensor
        elif layout != "alone":
            short = name.removeprefix("model.")
            tensors[short if layout == "hub" else f"model.{short}"] = tensor
    if layout == "alone":
        config = {**config["text_config"], "architectures": [TEXT]}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    make_tokenizer().save_pretrained(folder)
    return folder


def convert(folder: Path, out: Path, quantizing: Quantizing = PLAIN) -> Path:
    out.mkdir()
    conversion = Conversion(open_source(folder), "float32", quantizing=quantizing)
    conversion.write(out, lambda done, total: None)
    return out


def test_every_layout_gives_the_checkpoint_of_the_text_model_by_itself(
    whole: Path, tmp_path: Path
) -> None:
    alone = convert(rename(whole, tmp_path / "alone", "alone"), tmp_path / "of alone")
    for layout in ("hub", "new"):
        within = convert(rename(whole, tmp_path / layout, layout), tmp_path / f"of {layout}")
        for file in ("rank0.safetensors", "config.json"):
            assert (within / file).read_bytes() == (alone / file).read_bytes()
    assert read_model_config(alone).architecture == TEXT


def test_its_logits_are_those_of_the_whole_model(whole: Path, make_engine) -> None:
    text = np.random.default_rng(0).integers(3, 60, 40).tolist()
    engine = make_engine(whole)
    (found,) = engine.step([item(engine.open(), text)])
    np.testing.assert_allclose(found.logits, Reference(whole).logits(text), atol=1e-3)


def test_a_wrong_value_is_named_with_the_key_of_the_text_model() -> None:
    facts = {"architectures": [WHOLE], "text_config": {**text_config(), "hidden_size": "64"}}
    with pytest.raises(ConfigError, match=r"'text_config\.hidden_size' is '64'"):
        read_facts(facts, "float32")
    with pytest.raises(ConfigError, match="'text_config' is 5: must be an object"):
        read_facts({"model_type": "gemma3", "text_config": 5}, "float32")
    with pytest.raises(ConfigError, match="transformers reads as Gemma2ForCausalLM"):
        read_facts({**facts, "text_config": {"model_type": "gemma2"}}, "float32")


def test_the_outer_config_ties_the_head() -> None:
    facts = {"architectures": [WHOLE], "text_config": text_config()}
    for tied in (True, False):
        given = {**facts, "tie_word_embeddings": tied}
        assert read_facts(given, "float32").tie_word_embeddings == tied


def test_quantised_parts_are_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="only from 16 bits"):
        convert(whole, tmp_path / "out", Quantizing("fp8", prompts=("a",)))
    folder = rename(whole, tmp_path / "hub", "hub")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="only from 16 bits"):
        survey(open_source(folder), "float32")
