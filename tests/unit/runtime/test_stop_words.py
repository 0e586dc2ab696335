"""Stop words with special tokens: found in text and in tokens alike, though they have no text."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import AddedToken

from specpipe.core.contracts import Sampling
from specpipe.runtime.stop_words import StopWords
from specpipe.runtime.tokens import TextStream, TextTokenizer, load_tokenizer
from tests.helpers.tokenizer_shapes import byte_level, llama2

NAMES = ("<|im_start|>", "<|im_end|>", "<|x|>")


def load(tokenizer, folder: Path) -> TextTokenizer:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"vocab_size": 2000, "end_ids": [1], "pad_id": 0}
    (folder / "tokenizer_facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return load_tokenizer(folder)


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory) -> TextTokenizer:
    if request.param == "bytes":
        made = byte_level(special=NAMES, regex=True)()
    else:
        added = tuple(AddedToken(name, special=True, normalized=False) for name in NAMES)
        made = llama2(added=added, bos=None, prefix=False)()
    return load(made, tmp_path_factory.mktemp("t") / request.param)


def stopped(tokenizer: TextTokenizer, words: Sequence[str], answer: str, size: int) -> str | None:
    """Return the text up to a stop word, or None if none was found; `size` tokens a step."""
    ids = tokenizer.tokenizer.encode(answer, add_special_tokens=False).ids
    stream = TextStream(tokenizer, tuple(words))
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    whole = "".join([*pieces, stream.finish()])
    assert whole == stream.text
    return whole if stream.stopped else None


CASES = {
    "a special token": (["<|im_end|>"], "The fox<|im_end|> jumps", "The fox"),
    "text and a token": (["fox<|im_end|>"], "The fox<|im_end|> jumps", "The fox"),
    "a token and text": (["<|im_end|>\n"], "fox<|im_end|>\njumps", "fox\n"),
    "a token between": (["fox<|x|>jumps"], "The fox<|x|>jumps over", "The foxjumps"),
    "two tokens": (["<|im_end|><|im_start|>"], "fox<|im_end|><|im_start|>user", "fox"),
    "the first of several": (["over", "<|x|>"], "The fox<|x|> jumps over", "The fox"),
    "a plain word before a token": (["fox", "<|x|>"], "The fox<|x|> jumps", "The fox"),
    "characters of several bytes": (["東<|x|>"], "a 東<|x|> b", "a 東"),
    "another token": (["<|im_start|>"], "The fox<|im_end|> jumps", None),
    "a part of a token": (["im_end"], "The fox<|im_end|> jumps", None),
    "another text before the token": (["dog<|im_end|>"], "The fox<|im_end|> jumps", None),
    "an invisible token within a word": (["foxjumps"], "fox<|x|>jumps", "foxjumps"),
}


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("name", CASES)
def test_the_answer_ends_at_the_word(name: str, size: int, tokenizer: TextTokenizer) -> None:
    words, answer, expected = CASES[name]
    assert stopped(tokenizer, words, answer, size) == expected


@pytest.mark.parametrize(
    "name", ["a special token", "two tokens", "another token", "a part of a token"]
)
def test_the_engine_finds_the_same_words_by_their_tokens(
    name: str, tokenizer: TextTokenizer
) -> None:
    """`preprocessing` sends the words of the text models as tokens."""
    words, answer, expected = CASES[name]
    ids = tokenizer.tokenizer.encode(answer, add_special_tokens=False).ids
    listed = tokenizer.words(words)
    ends = [n for n in range(len(ids)) for w in listed if tuple(ids[: n + 1][-len(w) :]) == w]
    assert bool(ends) == (expected is not None)
    if ends:
        assert tokenizer.decode(ids[: min(ends) + 1]) == expected


def test_a_token_that_takes_the_spaces_around_it_does_so_in_a_word() -> None:
    added = {7: AddedToken("<|end|>", special=True, lstrip=True, rstrip=True)}
    words = StopWords.of(["x <|end|>\n", "<|end|>"], added)
    assert words.words == {f"x{words.mark(7)}", words.mark(7)}


def test_the_longest_token_is_taken_where_one_begins_as_another() -> None:
    tokens = (AddedToken("<|e|>", special=True), AddedToken("<|e|>>", special=True))
    words = StopWords.of(["<|e|>>"], dict(enumerate(tokens)))
    assert words.words == {words.mark(1)}


def test_tokens_that_are_not_special_have_text_and_no_mark() -> None:
    words = StopWords.of(["<tool>"], {7: AddedToken("<tool>", special=False)})
    assert words.words == {"<tool>"} and words.mark(7) == ""


def test_bad_words_may_be_special_tokens(tokenizer: TextTokenizer) -> None:
    number = tokenizer.tokenizer.token_to_id("<|x|>")
    banned = tokenizer.words(["<|x|>"])
    assert (number,) in banned and Sampling(bad_words=banned)


@pytest.mark.parametrize("word", ["\n", "\n\n", "User", ":", "x<|x|>"])
def test_a_word_after_other_text_is_among_its_tokens_whatever_begins_a_text(
    word: str, tmp_path: Path
) -> None:
    """A text of Llama 2 begins with a space, so its tokens are not those of the word in a text."""
    added = tuple(AddedToken(name, special=True, normalized=False) for name in NAMES)
    tokenizer = load(llama2(added=added, bos=None)(), tmp_path / "t")
    ids = tokenizer.tokenizer.encode(f"\na{word}", add_special_tokens=False).ids
    assert any(tuple(ids[-len(w) :]) == w for w in tokenizer.words([word]))
