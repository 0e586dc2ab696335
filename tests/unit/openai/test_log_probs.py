"""The two shapes of log probabilities."""

from typing import Any

from specpipe.openai.log_probs import LogProbs
from specpipe.serve.pieces import Acceptance, Piece, PromptScores

TEXTS = {1: "a", 2: "é", 3: "\ufffd", 4: "\ufffd"}


class Tokenizer:
    def decode(self, ids: list[int], *, special: bool) -> str:
        return "".join(TEXTS[i] for i in ids)


def piece(*tokens: tuple[int, float], tops: Any = ()) -> Piece:
    ids, values = zip(*tokens, strict=True)
    return Piece("", ids, False, Acceptance(), None, 0.0, log_probs=values, tops=tops)


def made(tops: int, *, chat: bool) -> LogProbs:
    return LogProbs(Tokenizer(), tops, chat)  # type: ignore[arg-type]


def test_a_completion_has_the_likeliest_tokens_and_the_actual_one() -> None:
    found = made(1, chat=False)
    found.add_answer(piece((1, -0.5), (2, -3.0), tops=(((1, -0.5),), ((1, -0.1),))))
    assert found.to_json() == {
        "tokens": ["a", "é"], "token_logprobs": [-0.5, -3.0], "text_offset": [0, 1],
        "top_logprobs": [{"a": -0.5}, {"a": -0.1, "é": -3.0}],
    }  # fmt: skip
    assert found.to_json(1)["tokens"] == ["é"] and found.to_json(1)["text_offset"] == [1]


def test_the_likelier_of_two_tokens_with_one_text_is_reported() -> None:
    found = made(2, chat=False)
    found.add_answer(piece((4, -2.0), tops=(((3, -0.5), (4, -2.0)),)))
    assert found.to_json()["top_logprobs"] == [{"\ufffd": -0.5}]


def test_a_prompt_begins_with_null_and_shares_the_number_of_its_top() -> None:
    found = made(1, chat=False)
    found.add_prompt([1, 2], PromptScores((-1.25, float("nan")), (2, 1), (-1.2500001, -0.1)))
    assert found.to_json()["token_logprobs"] == [None, -1.25]
    assert found.to_json()["top_logprobs"] == [None, {"é": -1.25}]


def test_a_chat_lists_what_was_asked_for_and_bytes_of_whole_characters() -> None:
    found = made(1, chat=True)
    found.add_answer(piece((2, -3.0), (3, float("-inf")), tops=(((1, -0.1),), ((1, -0.2),))))
    first, second = found.to_json()["content"]
    assert first == {
        "token": "é", "logprob": -3.0, "bytes": [195, 169],
        "top_logprobs": [{"token": "a", "logprob": -0.1, "bytes": [97]}],
    }  # fmt: skip
    assert second["bytes"] is None and second["logprob"] == -9999.0
    plain = made(0, chat=True)
    plain.add_answer(piece((1, -0.5)))
    assert plain.to_json()["content"][0]["top_logprobs"] == []
