"""A difference is a near-tie or a defect by the margin of the reference, in text and in tokens."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from specpipe.serve.client import Client
from specpipe.validate.arms import ServedArm
from specpipe.validate.differences import LEAST, Contrast, Noise, compare, differs
from specpipe.validate.judge import Judge
from specpipe.validate.noise import calibrate, with_precision
from specpipe.validate.questions import Question, Questions
from specpipe.validate.trials import Likelihoods
from tests.helpers.served_model import END, ServedModel, ToyReference, toy_logits, toy_tokenizer

TOKENIZER = toy_tokenizer()
ASKED = tuple(TOKENIZER.encode("Tell a story of a cat", 99))
ANSWER = ToyReference().generate(ASKED, 12, (END,)).tokens
QUIET = Noise(batch=0.0, precision=0.0)


def text(tokens: Sequence[int]) -> str:
    return TOKENIZER.decode_answer(tokens)


def changed(place: int, rank: int) -> tuple[tuple[int, ...], float]:
    """Return the answer with another token at a place, and the reference's margin there."""
    row = np.sort(toy_logits([*ASKED, *ANSWER[:place]]))[::-1]
    token = int(np.argsort(-toy_logits([*ASKED, *ANSWER[:place]]))[rank])
    return (*ANSWER[:place], token, *ANSWER[place + 1 :]), float(row[0] - row[rank])


def contrast(got: Sequence[int], *, with_tokens: bool) -> Contrast:
    tokens = (ANSWER, tuple(got)) if with_tokens else ((), ())
    return Contrast("answers", 0, "speculative", "plain", ASKED, text(ANSWER), text(got), *tokens)


def judged(found: Contrast, noise: Noise = QUIET):  # type: ignore[no-untyped-def]
    equality = compare([found], Judge(ToyReference), TOKENIZER, noise)
    return equality.differences[0] if equality.differences else None


@pytest.mark.parametrize("with_tokens", [True, False])
@pytest.mark.parametrize(("place", "rank"), [(0, 1), (5, 1), (11, 3)])
def test_the_margin_is_that_of_the_token_in_the_answer(place, rank, with_tokens) -> None:
    got, margin = changed(place, rank)
    found = judged(contrast(got, with_tokens=with_tokens))
    assert (found.position, found.token) == (place, got[place])
    assert found.margin == pytest.approx(margin) and found.kind == "defect"


def test_a_margin_within_the_noise_is_a_near_tie() -> None:
    got, margin = changed(4, 1)
    found = contrast(got, with_tokens=True)
    assert judged(found, Noise(batch=margin / 2, precision=margin / 1.9)).kind == "near-tie"
    assert judged(found, Noise(batch=margin / 2, precision=margin / 2.1)).kind == "defect"
    assert judged(found, Noise()).kind == "not judged"


def test_equal_answers_do_not_load_the_reference() -> None:
    def fail() -> ToyReference:
        raise AssertionError("the reference was loaded")

    equality = compare([contrast(ANSWER, with_tokens=True)] * 3, Judge(fail), TOKENIZER, QUIET)
    assert equality.rows() == [["speculative against plain", "3", "3", "0", "0", "0"]]


@pytest.mark.parametrize("with_tokens", [True, False])
def test_an_answer_that_ends_early_has_the_margin_of_the_end_token(with_tokens: bool) -> None:
    found = judged(contrast(ANSWER[:6], with_tokens=with_tokens))
    row = toy_logits([*ASKED, *ANSWER[:6]])
    assert found.position == 6 and found.token is None and found.kind == "defect"
    assert found.margin == pytest.approx(row.max() - row[END])


def test_an_answer_that_goes_on_after_its_end_token_is_a_defect() -> None:
    ended = replace(contrast(ANSWER, with_tokens=True), expected=(*ANSWER[:6], END))
    ended = replace(ended, expected_text=text(ANSWER[:6]), got=(*ANSWER[:6], END, *ANSWER[6:]))
    found = judged(ended, Noise(batch=0.0, precision=0.0))
    assert found.position == 6 and found.token == ANSWER[6]


def test_an_end_token_that_is_not_sent_is_no_difference() -> None:
    ended = replace(contrast(ANSWER, with_tokens=True), expected=(*ANSWER, END))
    assert not differs(ended, TOKENIZER)


def test_a_coarse_engine_is_excused_up_to_a_bound() -> None:
    assert Noise(0.1, 5.0).limit == pytest.approx(2.1)
    assert Noise(0.0, 0.0).limit == LEAST and Noise(0.1, None).limit is None


class Shaky(ServedModel):
    """Other log probabilities for every request."""

    numbers = 0

    def stream_tokens(self, prompt, options):  # type: ignore[no-untyped-def]
        self.numbers += 1
        shift = 0.01 * self.numbers
        for piece in super().stream_tokens(prompt, options):
            yield replace(piece, log_probs=tuple(v + shift for v in piece.log_probs))


def test_the_noise_is_twice_the_largest_change_in_another_batch() -> None:
    questions = Questions((Question("Tell", (3, 4)), Question("Say", (5, 6))), TOKENIZER)
    client: Client = Shaky()  # type: ignore[assignment]
    noise = calibrate(client, ServedArm("plain", 0), questions, 8)
    assert noise.batch is not None and noise.tokens == 16
    assert 0.02 <= noise.batch / 2 <= 0.0301  # requests 1 and 2 by themselves, 3 and 4 together


def test_the_precision_is_twice_the_largest_distance_from_the_reference() -> None:
    readings = [Likelihoods(0, "reference", (-1.0, -2.0, -9.0), ()),
                Likelihoods(0, "plain", (-1.1, -2.3, -5.0), ())]  # fmt: skip
    noise = with_precision(Noise(batch=0.0), readings, "plain")
    assert noise.precision == pytest.approx(0.6)  # -9 is no candidate of a greedy choice
    assert with_precision(Noise(batch=0.0), [], "plain").precision is None
