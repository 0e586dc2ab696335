"""tokenizer.model without tokenizer.json: converted once, with the ids of sentencepiece."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specpipe.checkpoint.sentencepiece_model import CORPUS
from specpipe.core.conversation import Conversation
from tests.helpers.tokenizer_judge import judge, rejections, served
from tests.helpers.tokenizer_shapes import write_json

sentencepiece = pytest.importorskip("sentencepiece")

pytestmark = pytest.mark.slow
LLAMA: dict[str, Any] = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False, "split_digits": True, "vocab_size": 420,
    "character_coverage": 0.98,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "Llama 2, Vicuna, Mistral v0.1": LLAMA,
    "Gemma": {
        **LLAMA, "add_dummy_prefix": False, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
        "user_defined_symbols": ["<start_of_turn>", "<table>", "\n\n", "\u2581\u2581"],
    },
    "without bytes": {**LLAMA, "byte_fallback": False, "character_coverage": 1.0},
    "nfkc": {**LLAMA, "normalization_rule_name": "nfkc", "byte_fallback": False},
    "unigram": {
        "model_type": "unigram", "vocab_size": 450, "byte_fallback": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
    },
    "unigram with defaults": {"model_type": "unigram", "vocab_size": 450},
}  # fmt: skip
TRAINED_ON = [text.strip() for text in CORPUS] * 4
CONFIG = {"model_type": "llama", "vocab_size": 2000, "eos_token_id": 2}


@pytest.fixture(scope="module")
def trained() -> Callable[[str], bytes]:
    """Return a function that trains a model once."""
    made: dict[str, bytes] = {}

    def train(name: str) -> bytes:
        if name not in made:
            model = io.BytesIO()
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(TRAINED_ON), model_writer=model, minloglevel=2,
                hard_vocab_limit=False, **MODELS[name],
            )  # fmt: skip
            made[name] = model.getvalue()
        return made[name]

    return train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    place.mkdir()
    write_json(place / "config.json", CONFIG)
    return place


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_sentencepiece(
    name: str, trained: Callable[[str], bytes], folder: Path, tmp_path: Path
) -> None:
    (folder / "tokenizer.model").write_bytes(trained(name))
    ours = served(folder, tmp_path / "out")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained(name))
    for text in (*CORPUS, "a", " ", "x  y ", "\n", "日本語 and English 42", "🦊"):
        ids = ours.tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), text
        assert ours.encode(text, 1000) == [theirs.bos_id(), *ids]
        if theirs.unk_id() not in ids:  # sentencepiece writes a mark for it, transformers nothing
            assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("name", ["Llama 2, Vicuna, Mistral v0.1"])
def test_ids_are_those_of_transformers(
    name: str, legacy: bool | None, trained: Callable[[str], bytes], folder: Path, tmp_path: Path
) -> None:
    """Leading spaces and texts after a special token apart, where its releases differ."""
    (folder / "tokenizer.model").write_bytes(trained(name))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "eos_token": "</s>"}
    given = {} if legacy is None else {"legacy": legacy}
    write_json(folder / "tokenizer_config.json", {**settings, "bos_token": "<s>", **given})
    ours, theirs = served(folder, tmp_path / "out"), judge(folder)
    for text in CORPUS:
        if not text.startswith(" "):
            assert ours.encode(text, 1000) == theirs(text).input_ids, text
    if legacy is not False:
        assert ours.encode("</s>x", 9)[2:] == ours.encode("x", 9)[1:], "a space follows </s>"


@pytest.mark.parametrize("begin", [True, False, None])
@pytest.mark.parametrize("end", [True, False, None])
def test_flags_about_first_and_last_tokens_are_followed(
    begin: bool | None,
    end: bool | None,
    trained: Callable[[str], bytes],
    folder: Path,
    tmp_path: Path,
) -> None:
    (folder / "tokenizer.model").write_bytes(trained("Llama 2, Vicuna, Mistral v0.1"))
    flags = {"add_bos_token": begin, "add_eos_token": end}
    given = {key: flag for key, flag in flags.items() if flag is not None}
    names = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    write_json(folder / "tokenizer_config.json", {**names, **given})
    ours = served(folder, tmp_path / "out").encode("x", 100)
    assert (ours[0] == 1) == (begin is not False) and (ours[-1] == 2) == (end is True)
    if begin is not None:  # transformers 4 takes an absent flag for true, 5 for false
        assert ours == judge(folder)("x").input_ids


def test_the_files_next_to_the_model_count(
    trained: Callable[[str], bytes], folder: Path, tmp_path: Path
) -> None:
    """Vicuna has a padding token in added_tokens.json, and a template in tokenizer_config.json."""
    (folder / "tokenizer.model").write_bytes(trained("Llama 2, Vicuna, Mistral v0.1"))
    size = sentencepiece.SentencePieceProcessor(
        model_proto=trained("Llama 2, Vicuna, Mistral v0.1")
    ).get_piece_size()
    template = "{% for m in messages %}USER: {{ m.content }}</s>{% endfor %}"
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "pad_token": "<pad>", "add_bos_token": False, "chat_template": template,
    })  # fmt: skip
    write_json(folder / "added_tokens.json", {"<pad>": size})
    ours = served(folder, tmp_path / "out")
    assert ours.pad_id == ours.tokenizer.token_to_id("<pad>") == size
    assert ours.encode("x", 9) == ours.tokenizer.encode("x", add_special_tokens=False).ids
    assert ours.chat.text(Conversation.of("x")) == "USER: x</s>"


def test_what_is_converted_twice_is_equal(
    trained: Callable[[str], bytes], folder: Path, tmp_path: Path
) -> None:
    (folder / "tokenizer.model").write_bytes(trained("Gemma"))
    for out in ("a", "b"):
        served(folder, tmp_path / out)
    one, other = ((tmp_path / out / "tokenizer.json").read_bytes() for out in ("a", "b"))
    assert one == other


def test_without_sentencepiece_the_extra_is_named(
    trained: Callable[[str], bytes], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.model").write_bytes(trained("Gemma"))
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (reason,) = rejections(folder)
    assert (
        "compared with sentencepiece, which is not installed" in reason
        and "'.[sentencepiece]'" in reason
    )


@pytest.mark.parametrize("content", [b"IQ== 0\nIg== 1\n", b"", b"<html></html>"])
def test_a_file_of_another_program_is_a_sentence(content: bytes, folder: Path) -> None:
    """Llama 3's tokenizer.model is of tiktoken."""
    (folder / "tokenizer.model").write_bytes(content)
    (reason,) = rejections(folder)
    assert "is no model of sentencepiece" in reason and "tokenizer.json" in reason


def test_a_conversion_that_differs_is_refused_with_the_text(folder: Path) -> None:
    """A symbol of the user ends a text for tokenizers, which then begin the rest with a space."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINED_ON), model_writer=model, minloglevel=2,
        user_defined_symbols=["fox"], **LLAMA,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (reason,) = rejections(folder)
    assert "as tokenizer.json it gives 'The quick brown fox" in reason


def test_a_model_of_words_is_refused(folder: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f"] * 9), model_writer=model, model_type="word",
        vocab_size=9, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    assert "neither unigram nor BPE" in rejections(folder)[0]
