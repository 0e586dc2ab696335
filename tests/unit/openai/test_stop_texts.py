"""The stop text that ends an answer is not part of it, however the answer is cut into pieces."""

import pytest

from specpipe.openai.stop_texts import StopTexts

CASES = [
    ("one two END", ["END"], "one two "),
    ("one two", ["END"], "one two"),
    ("one EN two", ["END"], "one EN two"),
    ("EEEND", ["END"], "EE"),
    ("a\nb\n\n", ["\n\n", "X"], "a\nb"),
    ("abab", ["ab"], "ab"),
    ("xabc", ["bc", "abc"], "x"),
    ("plain", [], "plain"),
]


@pytest.mark.parametrize(("text", "stops", "expected"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_stop_text_at_the_end_is_removed(
    text: str, stops: list[str], expected: str, size: int
) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    answer = StopTexts(stops)
    got = [answer.push(piece, final=False) for piece in pieces] + [answer.push("", final=True)]
    assert "".join(got) == expected


def test_text_that_cannot_become_a_stop_text_is_returned_at_once() -> None:
    answer = StopTexts(["END"])
    assert [answer.push(p, final=False) for p in ("one E", "a", "EN", "x")] == [
        "one ", "Ea", "", "ENx",
    ]  # fmt: skip
