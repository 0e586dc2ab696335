"""The responses of the server for one HTTP request: gathered, or as server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence

from specpipe.core.errors import SpecpipeError, StageFailed
from specpipe.openai.answers import Json, Tally, error_object, metrics, usage
from specpipe.openai.shapes import Shape
from specpipe.serve.pieces import Piece

Pieces = AsyncGenerator[Piece, None]
Numbered = AsyncGenerator[tuple[int, Piece], None]
_WAITING = 16  # pieces that a slow client may leave unread before the server has to wait
DONE = "data: [DONE]\n\n"
_MARK = "\0text\0"  # stands for the text of a chunk; no name of a model contains it
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


async def gather(answers: Sequence[Pieces], tallies: Sequence[Tally]) -> Sequence[Tally]:
    """Read every answer to its end, into its tally; the first failure ends them all."""

    async def one(pieces: Pieces, tally: Tally) -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                tally.add(piece)

    tasks = [asyncio.ensure_future(one(*pair)) for pair in zip(answers, tallies, strict=True)]
    try:
        await asyncio.gather(*tasks)
        return tallies
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def interleave(answers: Sequence[Pieces]) -> Numbered:
    """Yield the pieces of all answers as they arrive, each with the number of its answer."""
    return _only(answers[0]) if len(answers) == 1 else _interleaved(answers)


async def _only(answer: Pieces) -> Numbered:
    async with contextlib.aclosing(answer):
        async for piece in answer:
            yield 0, piece


async def _interleaved(answers: Sequence[Pieces]) -> Numbered:
    arrived: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue(_WAITING)

    async def forward(number: int, pieces: Pieces) -> None:
        try:
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    await arrived.put((number, piece))
        except Exception as error:
            await arrived.put((number, error))
        else:
            await arrived.put((number, None))

    tasks = [asyncio.ensure_future(forward(n, pieces)) for n, pieces in enumerate(answers)]
    try:
        running = len(tasks)
        while running:
            number, piece = await arrived.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                running -= 1
            else:
                yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def events(
    first: tuple[int, Piece],
    rest: Numbered,
    shape: Shape,
    tallies: Sequence[Tally],
    *,
    usage_last: bool,
    usage_always: bool = False,
) -> AsyncGenerator[str, None]:
    """Yield answers in chunks, one tally for each; a later failure is an event too.

    With `usage_always`, every chunk has the usage so far of the answer that it belongs to.
    """

    def chunk(choices: list[Json], **more: object) -> str:
        return event(shape.header.object(shape.chunk, choices=choices, **more))

    def counted(choice: Json, tally: Tally) -> str:
        return chunk([choice], usage=tally.usage()) if usage_always else chunk([choice])

    frames = [_frame(chunk([shape.delta(n, _MARK, None)])) for n in range(len(tallies))]
    waiting = set(range(len(tallies)))  # answers of which nothing was sent
    try:
        async with contextlib.aclosing(rest):
            async for number, piece in _after(first, rest):
                tally = tallies[number]
                text, log_probs = tally.add(piece), tally.new_log_probs()
                begun = shape.begin(number) if number in waiting else None
                waiting.discard(number)
                if begun is not None:
                    before = {"usage": tally.usage_before()} if usage_always else {}
                    yield chunk([begun], **before)
                if log_probs or (text and usage_always):
                    yield counted(shape.delta(number, text, log_probs), tally)
                elif text:
                    begin, end = frames[number]
                    yield begin + _encode(text) + end
                if piece.final:
                    for choice in shape.end(number, tally):
                        yield counted(choice, tally)
    except Exception as error:
        yield event(_failure(error))
        return
    if usage_last:
        yield chunk([], usage=usage(tallies), **metrics(tallies))
    yield DONE


async def _after(first: tuple[int, Piece], rest: Numbered) -> Numbered:
    yield first
    async for numbered in rest:
        yield numbered


def _frame(chunk: str) -> tuple[str, str]:
    """Return what stands before and behind the text of every chunk of an answer."""
    begin, _, end = chunk.partition(_encode(_MARK))
    return begin, end


def event(values: Json) -> str:
    """Return one server-sent event."""
    return f"data: {_encode(values)}\n\n"


def _failure(error: Exception) -> Json:
    known = error if isinstance(error, SpecpipeError) else StageFailed(f"a bug: {error!r}")
    return error_object(known)[1]
