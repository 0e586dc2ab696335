"""Chat templates of a source: from the place that transformers reads, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.chat_files import read_templates
from specpipe.checkpoint.tokenizer import tokenizer_files
from specpipe.core.conversation import Conversation
from tests.helpers.tokenizer_judge import judge, rejections, served, source_of
from tests.helpers.tokenizer_shapes import SHAPES, write_json

NAMED = [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "tools"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return SHAPES["Llama 3"].write(tmp_path / "model")


def put(model: Path, files: dict[str, Any]) -> None:
    """Write templates: text into files, other values into the files of settings."""
    for name, value in files.items():
        file = model / name
        file.parent.mkdir(exist_ok=True)
        if isinstance(value, str):
            file.write_text(value, encoding="utf-8")
        else:
            old = json.loads(file.read_text()) if file.exists() else {}
            write_json(file, {**old, **value})


PLACES: dict[str, dict[str, Any]] = {
    "a text in tokenizer_config.json": {"tokenizer_config.json": {"chat_template": "c é\n"}},
    "a list in tokenizer_config.json": {"tokenizer_config.json": {"chat_template": NAMED}},
    "a file": {"chat_template.jinja": "f"},
    "a file and settings": {
        "chat_template.jinja": "f", "tokenizer_config.json": {"chat_template": "c"}},
    "a file and further ones": {
        "chat_template.jinja": "f", "additional_chat_templates/rag.jinja": "r",
        "tokenizer_config.json": {"chat_template": NAMED}},
    "none": {},
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_those_that_transformers_reads(
    place: str, model: Path, tmp_path: Path
) -> None:
    put(model, PLACES[place])
    ours, theirs = served(model, tmp_path / "out"), judge(model, generic=True)
    found = theirs.chat_template
    expected = {"default": found} if isinstance(found, str) else found
    assert (ours.template.templates if ours.template else None) == expected
    if ours.template:
        assert ours.template.special_tokens["bos_token"] == theirs.bos_token
        files = {file.name for file in tokenizer_files(source_of(model))}
        assert {Path(name).name for name in PLACES[place]} <= files


def test_the_template_of_a_processor_is_read_last(model: Path, tmp_path: Path) -> None:
    put(model, {"chat_template.json": {"chat_template": "p"}})
    assert served(model, tmp_path / "a").chat.text(Conversation.of("x")) == "p"
    put(model, {"tokenizer_config.json": {"chat_template": "c"}})
    assert served(model, tmp_path / "b").chat.text(Conversation.of("x")) == "c"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"chat_template.jinja": "a\n{{ b"}, "the chat template 'default' does not parse: line 2"),
        ({"tokenizer_config.json": {"chat_template": [1]}}, "must be a text, or a list of objects"),
        ({"tokenizer_config.json": {"chat_template": {"a": "b"}}}, "must be a text, or a list"),
    ],
)
def test_what_is_no_template_is_refused_in_plan(
    files: dict[str, Any], words: str, model: Path
) -> None:
    put(model, files)
    (reason,) = rejections(model)
    assert words in reason


def test_a_template_that_refuses_a_single_message_is_no_fault(model: Path, tmp_path: Path) -> None:
    put(model, {"chat_template.jinja": "{{ raise_exception('system first') }}"})
    assert not rejections(model)
    assert served(model, tmp_path / "out").template is not None


def test_a_gguf_file_names_its_templates(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_chat_template([*NAMED, {"name": "rag", "template": "r é"}])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_templates(tmp_path / "model.gguf")
    assert found == {"default": "named", "tool_use": "tools", "rag": "r é"}
