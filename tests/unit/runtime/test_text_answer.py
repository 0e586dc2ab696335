"""Counters of a text request: what was emitted, not what the engine did for nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from numpy.typing import NDArray

from specpipe.runtime.exchange import Counters, EngineProgress
from specpipe.runtime.text_answer import TextAnswer
from specpipe.runtime.tokens import TextTokenizer
from specpipe.runtime.triton.requests import TextRequest
from specpipe.speculate.decode import Step

WANTS = frozenset({"return_perf_metrics", "return_num_output_tokens", "return_log_probs"})


class Responder:
    def __init__(self) -> None:
        self.sent: list[Mapping[str, NDArray[Any]]] = []
        self.final = False

    def send(self, outputs: Mapping[str, NDArray[Any]], *, final: bool) -> None:
        assert not self.final
        self.sent.append(outputs)
        self.final = final


def progress(steps: Sequence[Step]) -> list[EngineProgress]:
    counters = Counters(arrival_ns=1)
    found = []
    for step in steps:
        counters.add(step)
        found.append(
            EngineProgress(step.tokens, step.log_probs, step.finish, Counters(**vars(counters)))
        )
    return found


def answer(
    tokenizer: TextTokenizer, steps: Sequence[Step], stop: str, *, stream: bool
) -> tuple[TextAnswer, Mapping[str, NDArray[Any]]]:
    asked = TextRequest("?", 50, stream, (stop,), (), False, None, WANTS)
    responder = Responder()
    made = TextAnswer(responder, asked, tokenizer, [1])
    assert any(made.take(step) for step in progress(steps))
    assert responder.final
    return made, responder.sent[-1]


@pytest.mark.parametrize("stream", [False, True])
def test_accepted_drafts_behind_a_stop_word_are_not_counted(
    tokenizer: TextTokenizer, stream: bool
) -> None:
    one, *more = tokenizer.encode("a b c d", 10)
    more = more[:3]
    steps = [Step((one, *more), drafted=3, accepted=3, log_probs=(-0.1,) * 4)]
    made, last = answer(tokenizer, steps, tokenizer.decode([one]), stream=stream)
    assert made.used is not None
    assert (made.used.output_tokens, made.used.accepted_draft_tokens) == (1, 1)
    assert last["total_accepted_draft_tokens"] == 1 and last["total_draft_tokens"] == 3
    assert last["acceptance_rate"] == pytest.approx(1 / 3)
    assert last["num_output_tokens"] == 1


def test_earlier_steps_count_as_they_were(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("one two three stop", 40)
    first, rest = ids[:3], ids[3:]
    ending = tokenizer.encode("!!!!", 10)
    steps = [
        Step(tuple(first), drafted=4, accepted=2, log_probs=(-0.1,) * len(first)),
        Step((*rest, *ending), drafted=20, accepted=len(rest) + 1, log_probs=(-0.1,) * 20),
    ]
    made, _ = answer(tokenizer, steps, "stop", stream=False)
    assert made.used is not None
    assert made.used.output_tokens == len(ids)
    assert made.used.accepted_draft_tokens == 2 + len(rest)
    assert (made.used.steps, made.used.draft_tokens) == (2, 24)


def test_an_answer_that_no_stop_word_cuts_counts_everything(tokenizer: TextTokenizer) -> None:
    ids = tuple(tokenizer.encode("a b c d", 10))
    steps = [Step(ids, drafted=3, accepted=3, finish="length", log_probs=(-0.1,) * len(ids))]
    made, _ = answer(tokenizer, steps, "nowhere", stream=False)
    assert made.used is not None
    assert (made.used.output_tokens, made.used.accepted_draft_tokens) == (len(ids), 3)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_performance_figures_are_in_the_first_and_the_last_response_of_a_stream(
    tokenizer: TextTokenizer, count: int
) -> None:
    ids = tokenizer.encode("one two three four five", 40)[:count]
    steps = [Step((token,), drafted=1, accepted=0, log_probs=(-0.1,)) for token in ids]
    steps[-1] = replace(steps[-1], finish="length")
    responder = Responder()
    asked = TextRequest("?", 50, True, (), (), False, None, WANTS)
    made = TextAnswer(responder, asked, tokenizer, [1])
    for step in progress(steps):
        made.take(step)
    assert len(responder.sent) == count
    ends = [n for n, sent in enumerate(responder.sent) if "total_draft_tokens" in sent]
    assert ends == sorted({0, count - 1})
    assert responder.sent[-1]["total_draft_tokens"] == count


def test_an_engine_that_tells_its_acceptance_at_the_end_is_believed(
    tokenizer: TextTokenizer,
) -> None:
    ids = tuple(tokenizer.encode("a b c d", 10))
    told = Counters(1, steps=1, output_tokens=len(ids), draft_tokens=9, accepted_draft_tokens=2)
    steps = [EngineProgress(ids, (), None, Counters(1, steps=1, output_tokens=len(ids)))]
    steps.append(EngineProgress((), (), "end_id", told))
    asked = TextRequest("?", 50, False, ("nowhere",), (), False, None, WANTS)
    made = TextAnswer(Responder(), asked, tokenizer, [1])
    assert [made.take(step) for step in steps] == [False, True]
    assert made.used == told


@pytest.mark.parametrize("counts", [False, True])
def test_every_response_has_the_tokens_so_far_if_requested(
    tokenizer: TextTokenizer, counts: bool
) -> None:
    one, *more = tokenizer.encode("a b c d", 10)
    steps = [Step((one,), 0, 0), Step(tuple(more[:3]), 2, 2), Step((one,), 0, 0, finish="length")]
    asked = TextRequest("?", 50, True, (), (), False, None, WANTS, counts=counts)
    responder = Responder()
    made = TextAnswer(responder, asked, tokenizer, [1])
    assert [made.take(step) for step in progress(steps)][-1]
    found = [sent.get("num_output_tokens") for sent in responder.sent]
    tokens = [None if array is None else int(array.item()) for array in found]
    assert tokens == ([1, 4, 5] if counts else [None, None, 5])


def test_steps_with_a_draft_are_counted_by_their_accepted_tokens(
    tokenizer: TextTokenizer,
) -> None:
    """The prompt's step and plain steps do not count, and a stop word cuts the last one."""
    ids = tokenizer.encode("one two three four five stop six", 40)
    (a, b, c, *rest), scores = ids, (-0.1,) * 20
    steps = [
        Step((a,), drafted=0, accepted=0, log_probs=scores[:1]),
        Step((b,), drafted=4, accepted=0, log_probs=scores[:1]),
        Step((c,), drafted=0, accepted=0, log_probs=scores[:1]),
        Step(tuple(rest), drafted=9, accepted=len(rest) - 1, log_probs=scores[: len(rest)]),
    ]
    made, last = answer(tokenizer, steps, "stop", stream=True)
    assert made.used is not None
    accepted = made.used.accepted_draft_tokens
    assert 0 < accepted < len(rest) - 1
    assert last["acceptance_histogram"].tolist() == [[1, *[0] * (accepted - 1), 1]]


def test_several_steps_in_one_report_have_no_histogram(tokenizer: TextTokenizer) -> None:
    ids = tuple(tokenizer.encode("a b c d", 10))[:4]
    several = Step(ids, drafted=6, accepted=2, finish="length", log_probs=(-0.1,) * len(ids))
    assert len(ids) == 4
    _, last = answer(tokenizer, [several], "nowhere", stream=False)
    assert "total_draft_tokens" in last and "acceptance_histogram" not in last
