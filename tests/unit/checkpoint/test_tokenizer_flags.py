"""Flags of tokenizer_config.json that change which ids a text has, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.sentencepiece_model import CORPUS
from tests.helpers.tokenizer_judge import judge, served
from tests.helpers.tokenizer_shapes import OTHER_CLASS, SHAPES, write_json

MARKED = (
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|begin_of_text|>a<|eot_id|> b",
    "<s>a</s> b",
    "x<|endoftext|>y",
)


def read(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return values


def with_flags(folder: Path, **flags: object) -> Path:
    """Set keys of tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    write_json(file, {**read(file), **flags})
    return folder


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("name", ["Llama 3", "Qwen2", "Mistral v0.1", "GPT-2", "SmolLM2"])
def test_special_tokens_in_a_text_are_split_if_the_flag_is_set(
    name: str, flag: bool, tmp_path: Path
) -> None:
    folder = with_flags(SHAPES[name].write(tmp_path / "model"), split_special_tokens=flag)
    ours, theirs = served(folder, tmp_path / "out"), judge(folder, generic=name in OTHER_CLASS)
    for text in (*CORPUS, *MARKED):
        assert ours.encode(text, 1000) == theirs(text).input_ids, text
    special = set(ours.added)
    kept = [special & set(ours.tokenizer.encode(t, add_special_tokens=False).ids) for t in MARKED]
    assert any(kept) != flag


def test_the_flag_counts_for_older_files_too(tmp_path: Path) -> None:
    folder = with_flags(SHAPES["GPT-2"].write(tmp_path / "model"), split_special_tokens=True)
    model = read(folder / "tokenizer.json")["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    ours, theirs = served(folder, tmp_path / "out"), judge(folder)
    assert ours.encode("x<|endoftext|>y", 99) == theirs("x<|endoftext|>y").input_ids
    assert not set(ours.added) & set(ours.encode("x<|endoftext|>y", 99))


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """Return a tokenizer as large as those whose rule transformers replaces, with another rule."""
    folder = SHAPES["Llama 3"].write(tmp_path / "model")
    values = read(folder / "tokenizer.json")
    vocabulary = values["model"]["vocab"]
    first = max(*vocabulary.values(), *(t["id"] for t in values["added_tokens"])) + 1
    vocabulary.update({f"\u0120filler{n}": first + n for n in range(100_001)})
    write_json(folder / "tokenizer.json", values)
    write_json(
        folder / "config.json",
        {"model_type": "mistral", "transformers_version": "4.50.0", "eos_token_id": 1},
    )
    return folder


@pytest.mark.slow
def test_the_rule_that_transformers_replaces_for_mistral_is_replaced(
    mistral: Path, tmp_path: Path
) -> None:
    plain = served(mistral, tmp_path / "plain", rows=200_000)
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (
        mistral / "tokenizer.json"
    ).read_bytes()
    with_flags(mistral, fix_mistral_regex=True)
    ours = served(mistral, tmp_path / "out", rows=200_000)
    theirs = judge(mistral, generic=True)
    different = 0
    for text in CORPUS:
        assert ours.encode(text, 1000) == theirs(text).input_ids, text
        different += ours.encode(text, 1000) != plain.encode(text, 1000)
    assert different


@pytest.mark.parametrize("flags", [{"fix_mistral_regex": False}, {"fix_mistral_regex": True}])
def test_of_other_models_the_file_is_served_byte_by_byte(
    flags: dict[str, bool], tmp_path: Path
) -> None:
    folder = with_flags(SHAPES["Llama 3"].write(tmp_path / "model"), **flags)
    served(folder, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        folder / "tokenizer.json"
    ).read_bytes()
