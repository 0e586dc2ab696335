"""Streams of text: whole characters, stop words, and the same text as in one piece."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from specpipe.core.errors import ConfigError
from specpipe.runtime.stop_words import first_end
from specpipe.runtime.tokens import TextStream, TextTokenizer, load_tokenizer
from tests.helpers.models import make_tokenizer

TEXTS = [
    "Pack my box.",
    "Grüße aus München, 東京, and 🦊🦊.",
    "  leading and trailing  ",
    "a\n\nb\tc",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pieces_are_valid_and_concatenate_to_the_whole(
    text: str, size: int, tokenizer: TextTokenizer
) -> None:
    ids = tokenizer.encode(text, 1000)
    stream = TextStream(tokenizer)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    pieces.append(stream.finish())
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_answer_that_ends_inside_a_character_equals_the_whole_answer(
    tokenizer: TextTokenizer,
) -> None:
    ids = tokenizer.encode("x 東", 100)[:-1]
    stream = TextStream(tokenizer)
    assert stream.push(ids) + stream.finish() == tokenizer.decode(ids)
    assert tokenizer.decode(ids).endswith("\ufffd")


def test_special_tokens_are_left_out(tokenizer: TextTokenizer) -> None:
    ids = [*tokenizer.encode("box", 10), tokenizer.end_ids[0]]
    stream = TextStream(tokenizer)
    assert stream.push(ids) + stream.finish() == "box"


def test_an_end_token_has_no_text_even_if_it_is_not_special(tokenizer: TextTokenizer) -> None:
    *ids, end = tokenizer.encode("The quick brown fox", 20)
    assert tokenizer.decode([end])
    stream = TextStream(tokenizer, end_ids=(0, end))
    pieces = [stream.push([token]) for token in [*ids, end]]
    assert "".join([*pieces, stream.finish()]) == tokenizer.decode(ids)
    assert stream.tokens == [*ids, end] and stream.spoken == ids
    assert replace(tokenizer, end_ids=(0, end)).decode_answer([*ids, end]) == tokenizer.decode(ids)
    assert tokenizer.decode_answer([*ids, end]) == tokenizer.decode([*ids, end])


def test_the_first_stop_word_is_that_of_a_search_for_each() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("abc", k=30))
        words = ["".join(rng.choices("abc", k=rng.randint(1, 6))) for _ in range(rng.randint(0, 4))]
        begin = rng.randint(0, 30)
        each = [text.find(word, max(0, begin - len(word) + 1)) + len(word) for word in words]
        found = [end for end, word in zip(each, words, strict=True) if end >= len(word)]
        lengths = sorted({len(word) for word in words})
        assert first_end(text, begin, frozenset(words), lengths) == min(found, default=None)


def test_a_thousand_stop_words_are_not_searched_one_by_one(tokenizer: TextTokenizer) -> None:
    class Counted(str):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Counted.looks += 1
            return super().__eq__(other)

        __hash__ = str.__hash__

    words = tuple(Counted(f"word {n:04}") for n in range(1000))
    ids = tokenizer.encode("The quick brown fox jumps and says word 0999!", 100)
    stream = TextStream(tokenizer, words)
    assert stream.push(ids).endswith("word 0999") and stream.stopped
    assert Counted.looks <= 10


def test_text_of_answers_is_that_of_transformers_without_special_tokens() -> None:
    made = make_tokenizer()
    served = TextTokenizer(made.backend_tokenizer, len(made), (0,), 0, 100)
    ids = [*made("Pack my box.").input_ids, 1, *made(" Fox").input_ids, 0]
    stream = TextStream(served, end_ids=(0,))
    assert stream.push(ids) + stream.finish() == made.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("size", [1, 2, 50])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fox",), "The quick brown fox"),
        (("ick br",), "The quick br"),
        (("zzz", "own", "fox"), "The quick brown"),
        (("absent",), "The quick brown fox jumps"),
    ],
)
def test_the_answer_ends_with_the_first_stop_word(
    words: tuple[str, ...], expected: str, size: int, tokenizer: TextTokenizer
) -> None:
    ids = tokenizer.encode("The quick brown fox jumps", 100)
    stream = TextStream(tokenizer, words)
    pieces = [stream.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert "".join([*pieces, stream.finish()]) == expected
    assert stream.stopped == (words != ("absent",))
    assert tokenizer.decode(stream.tokens).startswith(expected)


def test_prompts_are_bounded(tokenizer: TextTokenizer) -> None:
    assert len(tokenizer.encode("fox", 10)) > 0
    with pytest.raises(ConfigError, match="is empty"):
        tokenizer.encode("", 10)
    with pytest.raises(ConfigError, match="at most 2 .max_input_len"):
        tokenizer.encode("The quick brown fox", 2)
    with pytest.raises(ConfigError, match="1000000 bytes"):
        tokenizer.encode("x" * 1_000_000, 100)


def test_words_are_spelled_with_and_without_a_space(tokenizer: TextTokenizer) -> None:
    words = tokenizer.words(["fox", ""])
    assert {tokenizer.decode(word) for word in words} == {"fox", " fox"}


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
