"""A wrong tokenizer in a repository is seen, though reference and server get the same ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.sentencepiece_model import CORPUS
from specpipe.core.conversation import Conversation
from specpipe.runtime.tokens import load_tokenizer
from specpipe.validate.checks import Check
from specpipe.validate.questions import Question, Questions
from specpipe.validate.tokenizers import check_tokenizer
from tests.helpers.tokenizer_judge import served
from tests.helpers.tokenizer_shapes import SHAPES, write_json

TEXTS = (*CORPUS, "<|im_start|>user\nhi<|im_end|>\n", "<s>[INST] hi [/INST]", "<|eot_id|> x")
Plant = Callable[[dict[str, Any]], None]


def check(source: Path, packaged: Path) -> Check:
    """Ask `TEXTS` with the tokenizer of a repository; answers are their ids, and an end token."""
    tokenizer = load_tokenizer(packaged)
    asked = tuple(Question(text, tuple(tokenizer.encode(text, 1000))) for text in TEXTS)
    ends = tokenizer.end_ids[:1]
    answers = [(*tokenizer.tokenizer.encode(text).ids, *ends) for text in CORPUS]
    return check_tokenizer(source, Questions(asked, tokenizer), answers)


@pytest.mark.parametrize("name", SHAPES)
def test_the_tokenizer_of_a_repository_passes(name: str, tmp_path: Path) -> None:
    source = SHAPES[name].write(tmp_path / "model")
    served(source, tmp_path / "out")
    found = check(source, tmp_path / "out")
    assert found.passed, found.seen
    assert f"{len(TEXTS)} prompts and {len(CORPUS)} answers as in transformers' " in found.seen


def swap_tokens(values: dict[str, Any]) -> None:
    vocabulary = values["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]


def drop_begin(values: dict[str, Any]) -> None:
    values["post_processor"] = None


def split_otherwise(values: dict[str, Any]) -> None:
    values["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
    }  # fmt: skip


def forget_special(values: dict[str, Any]) -> None:
    values["added_tokens"] = [t for t in values["added_tokens"] if t["content"] != "<|eot_id|>"]


def decode_otherwise(values: dict[str, Any]) -> None:
    values["decoder"] = {"type": "Fuse"}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (swap_tokens, "('e'), and "),
        (drop_begin, "token 0 of prompt 0 is "),
        (split_otherwise, " in transformers' "),
        (forget_special, f"of prompt {len(TEXTS) - 1} is "),
        (decode_otherwise, "answer 0 of the reference is 'The\u0120"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_tokenizer_fails_in_one_sentence(
    plant: Plant, words: str, tmp_path: Path
) -> None:
    source = SHAPES["Llama 3"].write(tmp_path / "model")
    served(source, tmp_path / "out")
    file = tmp_path / "out/tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    plant(values)
    file.write_text(json.dumps(values), encoding="utf-8")
    found = check(source, tmp_path / "out")
    assert not found.passed and words in found.seen and "\n" not in str(found)
    assert str(found).startswith("the tokenizer is the source's: ")


def test_the_tokenizer_of_another_model_fails(tmp_path: Path) -> None:
    source = SHAPES["Qwen2"].write(tmp_path / "model")
    served(SHAPES["StarCoder2"].write(tmp_path / "other"), tmp_path / "out")
    assert not check(source, tmp_path / "out").passed


def test_where_transformers_reads_no_tokenizer_the_report_states_it(tmp_path: Path) -> None:
    source = SHAPES["Qwen2"].write(tmp_path / "model")
    served(source, tmp_path / "out")
    (file := tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = check(file, tmp_path / "out")
    assert found.passed and "not compared: transformers reads no tokenizer from " in found.seen


def test_a_planted_chat_template_fails_in_one_sentence(tmp_path: Path) -> None:
    source = SHAPES["Llama 3"].write(tmp_path / "model")
    template = "{% for m in messages %}<|start_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
    (source / "chat_template.jinja").write_text(template)
    served(source, tmp_path / "out")
    file = tmp_path / "out/tokenizer_facts.json"
    right = file.read_text(encoding="utf-8")
    for text, words in ((right, ""), (right.replace("eot_id", "end_header_id"), "end_header_id|>")):
        file.write_text(text, encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path / "out")
        asked = Conversation.of("What is 12345?")
        question = Question(asked, tuple(tokenizer.encode_prompt(asked, 100)))
        found = check_tokenizer(source, Questions((question,), tokenizer), [])
        assert found.passed == (words == "") and words in found.seen
        assert found.passed or found.seen.startswith("prompt 0 in the chat template is ")


def test_without_a_tokenizer_json_the_text_between_special_tokens_is_compared(
    tmp_path: Path,
) -> None:
    """Releases of transformers differ in the first token, and in the space after a special one."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (source := tmp_path / "model").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.strip() for text in CORPUS] * 4), minloglevel=2,
        model_prefix=str(source / "tokenizer"), model_type="bpe", byte_fallback=True,
        vocab_size=420, character_coverage=0.98, normalization_rule_name="identity",
        hard_vocab_limit=False, remove_extra_whitespaces=False,
    )  # fmt: skip
    write_json(source / "config.json", {"model_type": "llama", "eos_token_id": 2})
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(source / "tokenizer_config.json", names)
    served(source, tmp_path / "out")
    found = check(source, tmp_path / "out")
    assert found.passed, found.seen
    file = tmp_path / "out/tokenizer.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    swap_tokens(values)
    file.write_text(json.dumps(values), encoding="utf-8")
    assert not check(source, tmp_path / "out").passed
