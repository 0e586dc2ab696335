"""Chunks of an answer: what a client sees if the server fails, and that nothing is left running."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from specpipe.core.errors import Unavailable
from specpipe.openai.answers import Header, Tally, metrics
from specpipe.openai.guard import ClientDisconnected, unless_disconnected
from specpipe.openai.shapes import ChatShape, CompletionShape, Shape
from specpipe.openai.stop_texts import StopTexts
from specpipe.openai.streaming import DONE, events, gather, interleave
from specpipe.runtime.tool_calls import ToolCallStream
from specpipe.serve.pieces import Acceptance, Piece

SHAPE = ChatShape(Header("chatcmpl-1", 1, "m"))


def piece(text: str, *, final: bool = False) -> Piece:
    counts = (5, 9, "length") if final else (None, None, None)
    output, prompt, reason = counts
    return Piece(
        text, (), final, Acceptance(6, 3), output, 0.1, prompt_tokens=prompt, finish_reason=reason
    )


async def answering(
    *texts: str, fails: Exception | None = None, closed: list[str] | None = None
) -> AsyncGenerator[Piece, None]:
    try:
        for text in texts:
            yield piece(text)
        if fails:
            raise fails
        yield piece("", final=True)
    finally:
        if closed is not None:
            closed.append("closed")


def tally() -> Tally:
    return Tally(StopTexts(()), most=40)


async def chunks(
    *answers: AsyncGenerator[Piece, None], tallies: list[Tally] | None = None
) -> list[str]:
    pieces = interleave(answers)
    first = await anext(pieces)
    tallies = tallies or [tally() for _ in answers]
    made = events(first, pieces, SHAPE, tallies, usage_last=True)
    return [chunk async for chunk in made]


def values(chunk: str) -> dict:
    assert chunk.startswith("data: ") and chunk.endswith("\n\n")
    found: dict = json.loads(chunk[6:])
    return found


def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done() -> None:
    made = asyncio.run(chunks(answering("a", "é\n")))
    *objects, done = made
    found = [values(chunk) for chunk in objects]
    assert done == DONE
    assert [c["delta"] for v in found for c in v["choices"]] == [
        {"role": "assistant", "content": ""}, {"content": "a"}, {"content": "é\n"}, {},
    ]  # fmt: skip
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["usage"] == {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
    assert found[-1]["metrics"]["speculative_decoding"] == {
        "mean_acceptance_length": 2.5, "draft_acceptance_rate": 0.5, "num_spec_steps": 2,
        "num_draft_tokens": 6, "num_accepted_draft_tokens": 3,
    }  # fmt: skip


def test_the_histograms_of_all_answers_are_added_up_as_vllm_writes_them() -> None:
    one, other = tally(), tally()
    one.steps, one.draft_tokens, one.accepted_draft_tokens, one.output_tokens = (1, 2), 9, 2, 8
    other.steps, other.draft_tokens, other.accepted_draft_tokens = (0, 0, 1), 3, 2
    assert metrics([one, other])["metrics"]["speculative_decoding"] == {
        "mean_acceptance_length": 2.0, "draft_acceptance_rate": 0.3333, "num_spec_steps": 4,
        "num_draft_tokens": 12, "num_accepted_draft_tokens": 4, "acceptance_histogram": [1, 2, 1],
    }  # fmt: skip
    nothing = tally()
    nothing.steps = (0,)
    assert metrics([nothing])["metrics"]["speculative_decoding"]["mean_acceptance_length"] == 1.0


def counting(*pieces: tuple[str, int | None]) -> AsyncGenerator[Piece, None]:
    """Answer with texts and the tokens so far; the first piece has those of the prompt, as ours."""

    async def made() -> AsyncGenerator[Piece, None]:
        for at, (text, tokens) in enumerate(pieces):
            last = at == len(pieces) - 1
            yield Piece(
                text, (), last, Acceptance(), tokens, 0.1, prompt_tokens=9 if at == 0 else None
            )

    return made()


async def counted_chunks(
    *answers: AsyncGenerator[Piece, None], tallies: list[Tally], shape: Shape = SHAPE
) -> list[dict]:
    pieces = interleave(answers)
    made = events(await anext(pieces), pieces, shape, tallies, usage_last=True, usage_always=True)
    return [values(chunk) async for chunk in made if chunk != DONE]


def completion_tokens(chunks: list[dict]) -> list[int]:
    for chunk in chunks:
        usage = chunk["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return [chunk["usage"]["completion_tokens"] for chunk in chunks]


def test_every_chunk_has_the_tokens_so_far() -> None:
    answer = counting(("one", 1), ("two three", 4), (" four", 5))
    found = asyncio.run(counted_chunks(answer, tallies=[tally()]))
    assert [c["choices"][0]["delta"].get("content") for c in found[:-1]] == [
        "", "one", "two three", " four", None,
    ]  # fmt: skip
    assert completion_tokens(found) == [0, 1, 4, 5, 5, 5]
    assert {chunk["usage"]["prompt_tokens"] for chunk in found} == {9}


def test_tokens_that_a_server_does_not_report_are_counted_in_the_text_so_far() -> None:
    answer = counting(("one", None), (" two three", None), ("", None))
    words = replace(tally(), count=lambda text: len(text.split()))
    found = asyncio.run(counted_chunks(answer, tallies=[words]))
    assert completion_tokens(found) == [0, 1, 3, 3, 3]


def test_the_chunks_of_several_answers_have_the_usage_of_theirs() -> None:
    shape = CompletionShape(Header("cmpl-1", 1, "m"), ("echo", ""))
    answers = (counting(("a", 1), ("b", 3)), counting(("c", 2), ("d", 7)))
    found = asyncio.run(counted_chunks(*answers, tallies=[tally(), tally()], shape=shape))
    *chunks, last = found
    by_answer = [[c for c in chunks if c["choices"][0]["index"] == n] for n in (0, 1)]
    assert [completion_tokens(own) for own in by_answer] == [[0, 1, 3, 3], [2, 7, 7]]
    assert by_answer[0][0]["choices"][0]["text"] == "echo"
    assert last["usage"] == {"prompt_tokens": 18, "completion_tokens": 10, "total_tokens": 28}


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Zürich"}}</tool_call>'


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_tool_call_in_a_stream_is_a_delta_and_no_content(size: int) -> None:
    text = f"Let me see.\n{CALL}"
    answer = answering(*(text[i : i + size] for i in range(0, len(text), size)))
    calling = replace(tally(), tools=ToolCallStream("hermes"))
    found = [values(chunk) for chunk in asyncio.run(chunks(answer, tallies=[calling]))[:-1]]
    choices = [choice for value in found for choice in value["choices"]]
    assert "".join(c["delta"].get("content") or "" for c in choices) == "Let me see."
    (call,) = [c["delta"]["tool_calls"][0] for c in choices if "tool_calls" in c["delta"]]
    assert call["index"] == 0 and call["type"] == "function" and call["id"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Zürich"}'}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_an_answer_that_only_calls_has_no_content() -> None:
    calling = replace(tally(), tools=ToolCallStream("hermes"), most_calls=1)
    asyncio.run(gather([answering(CALL + "\n" + CALL)], [calling]))
    (choice,) = SHAPE.whole([calling])["choices"]
    assert choice["message"]["content"] is None and choice["finish_reason"] == "tool_calls"
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_failure_after_the_first_piece_is_an_event_and_not_the_end_of_an_answer() -> None:
    made = asyncio.run(chunks(answering("a", fails=Unavailable("the engine died"))))
    assert DONE not in made
    assert values(made[-1])["error"]["message"] == "the engine died"
    assert not any(c["finish_reason"] for v in map(values, made[:-1]) for c in v["choices"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_failure_ends_the_other_answers_of_the_request(whole: bool) -> None:
    closed: list[str] = []

    async def endless() -> AsyncGenerator[Piece, None]:
        try:
            yield piece("x")
            await asyncio.Event().wait()
        finally:
            closed.append("endless")

    async def run() -> None:
        failing = answering("a", fails=Unavailable("gone"), closed=closed)
        if whole:
            with pytest.raises(Unavailable, match="gone"):
                await gather([failing, endless()], [tally(), tally()])
        else:
            assert "gone" in (await chunks(failing, endless()))[-1]

    asyncio.run(run())
    assert sorted(closed) == ["closed", "endless"]


def test_work_is_cancelled_when_the_client_disconnects() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("work")

    async def receive() -> dict:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnected):
        asyncio.run(unless_disconnected(work(), receive))
    assert ended == ["work"]


def test_a_result_is_returned_while_the_client_stays() -> None:
    async def receive() -> dict:
        await asyncio.Event().wait()
        return {}

    async def work() -> int:
        return 3

    assert asyncio.run(unless_disconnected(work(), receive)) == 3
