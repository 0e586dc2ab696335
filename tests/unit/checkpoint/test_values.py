"""What the bytes of weights decide: numbers that are none, and heads that are the embedding."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from specpipe.checkpoint.convert import Conversion, survey
from specpipe.checkpoint.families import FAMILIES
from specpipe.checkpoint.source import open_source
from specpipe.core.artifacts import read_model_config
from specpipe.core.errors import ConfigError
from specpipe.validate.reference import Reference
from tests.helpers.engine_steps import item
from tests.helpers.families import WORLDS, make_family

MATRIX, NORM = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def edit(folder: Path, **tensors: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    save_file({n: t for n, t in found.items() if t is not None}, file, metadata={"format": "pt"})


def state(folder: Path, **keys: Any) -> None:
    file = folder / "config.json"
    found = {**json.loads(file.read_text()), **keys}
    file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def convert(folder: Path, out: Path, dtype: Any = "float32") -> dict[str, torch.Tensor]:
    out.mkdir()
    Conversion(open_source(folder), dtype).write(out, lambda done, total: None)
    return load_file(out / "rank0.safetensors")


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [MATRIX, NORM])
def test_values_that_are_no_numbers_are_refused_by_name(
    name: str, value: float, kind: torch.dtype, copy: Path, tmp_path: Path
) -> None:
    tensor = load_file(copy / "model.safetensors")[name].to(kind)
    tensor.view(-1)[-1] = value
    edit(copy, **{name: tensor})
    with pytest.raises(ConfigError, match=f"{name} holds NaN or infinite values"):
        convert(copy, tmp_path / "out")


def test_joined_and_quantised_tensors_are_checked_too(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "GPT2LMHeadModel", "plain")
    name = "transformer.h.0.attn.c_attn.weight"
    tensor = load_file(folder / "model.safetensors")[name].clone()
    tensor[3, 3] = float("nan")
    edit(folder, **{name: tensor})
    with pytest.raises(ConfigError, match=f"{name} holds NaN"):
        convert(folder, tmp_path / "out")


def test_a_value_that_float16_cannot_hold_is_refused_with_the_remedy(
    copy: Path, tmp_path: Path
) -> None:
    tensor = load_file(copy / "model.safetensors")[MATRIX].bfloat16()
    tensor[5, 5] = -70000.0
    edit(copy, **{MATRIX: tensor})
    with pytest.raises(ConfigError, match=f"{MATRIX} holds 70144, which float16 cannot hold(.|\n)*"
                       "engine.dtype: bfloat16"):  # fmt: skip
        convert(copy, tmp_path / "half", "float16")
    convert(copy, tmp_path / "brain", "bfloat16")


HEADS = {"GPTNeoXForCausalLM": "embed_out.weight", "InternLM2ForCausalLM": "output.weight"}
TABLES = {
    "GPT2LMHeadModel": "transformer.wte.weight", "GPTNeoXForCausalLM": "gpt_neox.embed_in.weight",
    "FalconForCausalLM": "transformer.word_embeddings.weight",
    "InternLM2ForCausalLM": "model.tok_embeddings.weight",
}  # fmt: skip
JUDGED = [name for name in FAMILIES if name != "InternLM2ForCausalLM"]  # which needs code


def tables(name: str) -> tuple[str, str]:
    return TABLES.get(name, "model.embed_tokens.weight"), HEADS.get(name, "lm_head.weight")


@pytest.mark.parametrize("name", JUDGED)
def test_a_head_that_differs_is_kept_and_one_that_is_equal_or_missing_is_tied(
    name: str, tmp_path: Path
) -> None:
    """As transformers 5 does: the config ties, the files decide."""
    variant = next(iter(WORLDS[name].variants))
    folder = make_family(tmp_path / "model", name, variant, tie_word_embeddings=True)
    embedding, head = tables(name)
    table = load_file(folder / "model.safetensors")[embedding]
    for own, tied in ((table.flip(0).contiguous(), False), (table.clone(), True), (None, True)):
        edit(folder, **{head: own})
        assert survey(open_source(folder), "float32").tie_word_embeddings == tied
    edit(folder, **{head: table.flip(0).contiguous()})
    judge = AutoModelForCausalLM.from_pretrained(folder).get_output_embeddings().weight
    ours = convert(folder, tmp_path / "out")["lm_head.weight"]
    if int(transformers.__version__.split(".")[0]) >= 5:
        assert torch.equal(ours, judge)
    assert not read_model_config(tmp_path / "out").tie_word_embeddings


def test_a_head_that_differs_behind_its_first_rows_is_kept(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", "LlamaForCausalLM", "tied", vocab_size=40000)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"].clone()
    table[-1, -1] += 1
    edit(folder, **{"lm_head.weight": table})
    assert torch.equal(convert(folder, tmp_path / "out")["lm_head.weight"], table)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen2ForCausalLM", "PhiForCausalLM"])
def test_without_the_key_a_missing_head_is_the_embedding(name: str, tmp_path: Path) -> None:
    folder = make_family(tmp_path / "model", name, "plain")
    edit(folder, **{"lm_head.weight": None})
    state(folder, tie_word_embeddings=None)
    assert survey(open_source(folder), "float32").tie_word_embeddings
    state(folder, tie_word_embeddings=False)
    with pytest.raises(ConfigError, match=r"missing: lm_head\.weight"):
        survey(open_source(folder), "float32")


def test_the_reference_ties_what_the_engine_ties(tmp_path: Path, make_engine) -> None:
    folder = make_family(tmp_path / "model", "LlamaForCausalLM", "plain")
    edit(folder, **{"lm_head.weight": None})
    state(folder, tie_word_embeddings=None)
    engine = make_engine(folder)
    (found,) = engine.step([item(engine.open(), [5, 6, 7])])
    np.testing.assert_allclose(found.logits, Reference(folder).logits([5, 6, 7]), atol=1e-3)
