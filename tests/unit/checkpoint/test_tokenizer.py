"""Tokenizers: ids are those of transformers, whatever class a folder names, or a refusal."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from specpipe.checkpoint.sentencepiece_model import CORPUS
from specpipe.checkpoint.source import read_json
from specpipe.checkpoint.tokenizer import write_tokenizer
from specpipe.core.conversation import Conversation
from specpipe.core.errors import ConfigError
from specpipe.runtime.tokens import load_tokenizer
from tests.helpers.tokenizer_judge import judge, rejections, served, source_of
from tests.helpers.tokenizer_shapes import OTHER_CLASS, SHAPES, Shape, llama2, write_json
from tests.helpers.trtllm_build import LLAMA_8B

SPECIAL = (
    "<s>hello</s>world <|im_start|>user\nhi<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "<|user|> 12 <|end|> \n<|assistant|>  x<|endoftext|> <｜begin▁of▁sentence｜>y",
    "<start_of_turn>user\n3<end_of_turn>\n",
)
TEXTS = (*CORPUS, *SPECIAL)


@pytest.mark.parametrize("name", SHAPES)
def test_ids_and_texts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = SHAPES[name].write(tmp_path / "model")
    ours, theirs = served(folder, tmp_path / "out"), judge(folder, generic=name in OTHER_CLASS)
    for text in TEXTS:
        assert ours.tokenizer.encode(text).ids == theirs(text).input_ids, text
        plain = theirs(text, add_special_tokens=False).input_ids
        assert ours.tokenizer.encode(text, add_special_tokens=False).ids == plain, text
        whole = theirs.backend_tokenizer.decode(plain, skip_special_tokens=True)
        assert ours.decode(plain) == whole


@pytest.mark.parametrize("name", SHAPES)
def test_a_tokenizer_json_is_copied_byte_by_byte(name: str, tmp_path: Path) -> None:
    folder = SHAPES[name].write(tmp_path / "model")
    file = folder / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b"\n \n")
    served(folder, tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_bytes() == file.read_bytes()


@pytest.fixture
def llama3(tmp_path: Path) -> Path:
    return SHAPES["Llama 3"].write(tmp_path / "model")


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    write_json(file, values)


def test_truncation_and_padding_of_the_file_are_reset(llama3: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(llama3 / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(llama3 / "tokenizer.json"))
    ours, theirs = served(llama3, tmp_path / "out"), judge(llama3, generic=True)
    for text in ("Hi", CORPUS[0] * 5):
        assert ours.encode(text, 1000) == theirs(text).input_ids
    assert len(ours.encode("Hi", 1000)) < 8 < len(ours.encode(CORPUS[0] * 5, 1000))


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "gemma", "phi", "starcoder2", "gpt2", "phi3", "falcon"]
)
@pytest.mark.parametrize("settings", [None, {"eos_token": "</s>"}])
def test_a_folder_without_a_tokenizer_is_refused_for_every_family(
    model_type: str, settings: dict[str, str] | None, tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", {"model_type": model_type, "eos_token_id": 1})
    if settings:
        write_json(tmp_path / "tokenizer_config.json", settings)
    (reason,) = rejections(tmp_path)
    assert "no usable tokenizer: the folder has no tokenizer.json, no tokenizer.model" in reason
    assert "fetch the model's tokenizer.json into the folder" in reason


def split_up(folder: Path) -> None:
    """Replace tokenizer.json by the two older files."""
    model = read_json(folder / "tokenizer.json")["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_half_of_an_older_tokenizer_is_refused_by_the_missing_name(
    missing: str, tmp_path: Path
) -> None:
    folder = SHAPES["GPT-2"].write(tmp_path / "model")
    split_up(folder)
    (folder / missing).unlink()
    assert f"and {missing} is missing" in rejections(folder)[0]


@pytest.mark.parametrize("name", ["GPT-2", "Qwen2"])
def test_older_files_are_converted_as_transformers_does(name: str, tmp_path: Path) -> None:
    folder = SHAPES[name].write(tmp_path / "model")
    split_up(folder)
    ours, theirs = served(folder, tmp_path / "out"), judge(folder)
    for text in TEXTS:
        assert ours.encode(text, 1000) == theirs(text).input_ids


def test_a_token_that_no_file_names_is_never_invented(tmp_path: Path) -> None:
    folder = SHAPES["GPT-2"].write(tmp_path / "model")
    edit(folder / "tokenizer.json", lambda v: v["model"].update(
        vocab={t: i for t, i in v["model"]["vocab"].items() if not t.startswith("<|")}
    ))  # fmt: skip
    split_up(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    (reason,) = rejections(folder)
    assert "<|endoftext|>" in reason or "gives" in reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "no usable tokenizer: "),
        (b"", "no usable tokenizer: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs"),
    ],
)
def test_a_damaged_tokenizer_json_is_a_sentence(content: bytes, words: str, llama3: Path) -> None:
    (llama3 / "tokenizer.json").write_bytes(content)
    (reason,) = rejections(llama3)
    assert words in reason and str(llama3) in reason


@pytest.mark.parametrize("name", ["tekken.json", "qwen.tiktoken"])
def test_a_form_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "qwen2"})
    (tmp_path / name).write_text("x")
    (reason,) = rejections(tmp_path)
    assert f"specpipe does not read {name}" in reason and "save_pretrained" in reason


ADDED = {
    "special": {"2000": {"content": "<|x|>", "special": True}},
    "plain": {"2000": {"content": "日本 x", "special": False}},
    "that strips": {"2000": {"content": "<|x|>", "special": True, "lstrip": True, "rstrip": True}},
}


@pytest.mark.parametrize("kind", ADDED)
def test_tokens_that_only_tokenizer_config_adds_are_there(
    kind: str, llama3: Path, tmp_path: Path
) -> None:
    """As after `add_tokens` and an upload of tokenizer_config.json."""
    size = Tokenizer.from_file(str(llama3 / "tokenizer.json")).get_vocab_size()
    flags = {"normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    token = {str(size): {**flags, **ADDED[kind]["2000"]}}
    edit(llama3 / "tokenizer_config.json", lambda v: v.update(added_tokens_decoder=token))
    ours, theirs = served(llama3, tmp_path / "out"), judge(llama3)
    for text in ("a <|x|> b", "über 日本 x y", "<|x|><|x|>", *SPECIAL):
        ids = theirs(text).input_ids
        assert ours.encode(text, 1000) == ids
        assert ours.decode(ids) == theirs.backend_tokenizer.decode(ids)
    assert ours.tokenizer.token_to_id(ADDED[kind]["2000"]["content"]) == size


@pytest.mark.parametrize("place", ["special_tokens_map.json", "tokenizer_config.json"])
def test_a_padding_token_of_its_own_gets_the_next_id(
    place: str, llama3: Path, tmp_path: Path
) -> None:
    if place == "special_tokens_map.json":
        write_json(llama3 / place, {})
    edit(llama3 / place, lambda v: v.update(pad_token="[PAD]"))
    ours, theirs = served(llama3, tmp_path / "out"), judge(llama3)
    assert theirs.pad_token_id == ours.pad_id == ours.tokenizer.token_to_id("[PAD]")
    assert ours.encode("a [PAD]b", 100) == theirs("a [PAD]b").input_ids


@pytest.mark.parametrize("begin", [True, False, None])
@pytest.mark.parametrize("end", [True, False, None])
@pytest.mark.parametrize("shape", ["Llama 3", "GPT-2", "Mistral v0.1", "Gemma"])
def test_the_file_decides_about_first_and_last_tokens_and_no_flag(
    shape: str, begin: bool | None, end: bool | None, tmp_path: Path
) -> None:
    """transformers 5 ignores the flags next to a tokenizer.json; 4 follows them for some classes,
    so the generic one is the judge.
    """
    flags = {"add_bos_token": begin, "add_eos_token": end}
    given = {key: flag for key, flag in flags.items() if flag is not None}
    folder = SHAPES[shape].write(tmp_path / "model")
    edit(folder / "tokenizer_config.json", lambda v: [v.pop(key, None) for key in flags])
    edit(folder / "tokenizer_config.json", lambda v: v.update(given))
    ids = served(folder, tmp_path / "out").encode("x", 100)
    assert ids == judge(folder, generic=True)("x").input_ids
    assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode("x").ids


def test_a_tokenizer_with_more_tokens_than_the_table_is_of_another_model(llama3: Path) -> None:
    assert "the tokenizer belongs to another model" in rejections(llama3, rows=500)[0]


@pytest.fixture
def beyond(tmp_path: Path) -> tuple[Path, int]:
    """Return a Llama 2 with a padding token behind the table, and the rows of the table."""
    shape = Shape(llama2(), "llama", "LlamaTokenizer", {"eos_token": "</s>", "pad_token": "<pad>"})
    folder = shape.write(tmp_path / "model")
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    return folder, rows


def test_an_added_token_beyond_the_table_is_refused_only_where_it_is_used(
    beyond: tuple[Path, int], tmp_path: Path
) -> None:
    """transformers loads such a model too, and fails on prompts that contain the token."""
    folder, rows = beyond
    facts = write_tokenizer(source_of(folder), replace(LLAMA_8B, vocab_size=rows), tmp_path / "out")
    assert facts.beyond == ("<pad>",) and "none for <pad>" in facts.remarks()[-1]
    ours = load_tokenizer(tmp_path / "out")
    assert ours.vocab_size == rows and 0 <= ours.pad_id < rows
    assert ours.encode("fine", 100) == judge(folder, generic=True)("fine").input_ids
    with pytest.raises(ConfigError, match=f"contains '<pad>', token {rows}: the model has none"):
        ours.encode("not <pad> fine", 100)


def test_a_chat_template_that_writes_a_token_beyond_the_table_is_refused(
    beyond: tuple[Path, int],
) -> None:
    folder, rows = beyond
    template = "{% for m in messages %}<pad>{{ m.content }}{% endfor %}"
    edit(folder / "tokenizer_config.json", lambda v: v.update(chat_template=template))
    (reason,) = rejections(folder, rows)
    assert f"the chat template writes '<pad>', token {rows}" in reason


def test_names_and_templates_of_any_script_survive(llama3: Path, tmp_path: Path) -> None:
    folder = llama3.rename(tmp_path / "模型 ü")
    template = "{% for m in messages %}質問：{{ m.content }}\n回答：{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    ours = served(folder, tmp_path / "出力")
    assert ours.chat.text(Conversation.of("水は？")) == "質問：水は？\n回答："
    assert ours.encode("質問", 10) == judge(folder)("質問").input_ids


def test_what_is_written_twice_is_equal(llama3: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        served(llama3, tmp_path / out)
    for name in ("tokenizer.json", "tokenizer_facts.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_there_are_forty_shapes() -> None:
    assert len(SHAPES) >= 40


def test_a_special_token_that_is_only_in_the_vocabulary_becomes_one(
    llama3: Path, tmp_path: Path
) -> None:
    """`eos_token` names a token that tokenizer.json has, but does not keep whole."""
    edit(llama3 / "tokenizer_config.json", lambda v: v.update(eos_token="fox"))
    ours, theirs = served(llama3, tmp_path / "out"), judge(llama3)
    for text in ("firefox", "the fox jumps", "foxfox"):
        assert ours.encode(text, 100) == theirs(text).input_ids
