"""Answers in tokens as pieces of text, for prompts of token ids and for log probabilities."""

import contextlib
from dataclasses import replace

from specpipe.openai.calls import AnswerCall
from specpipe.openai.streaming import Pieces
from specpipe.runtime.tokens import TextStream, TextTokenizer


async def with_text(
    pieces: Pieces,
    tokenizer: TextTokenizer,
    call: AnswerCall,
) -> Pieces:
    """Yield pieces of tokens with their text; end at the first stop text.

    Tokens after a stop text are dropped, with their log probabilities.
    """
    stream = TextStream(tokenizer, call.stops, call.end_ids, special=bool(call.tools))
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            before = len(stream.tokens)
            text = stream.push(piece.tokens)
            kept = len(stream.tokens) - before
            final = piece.final or stream.stopped
            if final:
                text += stream.finish()
            yield replace(
                piece,
                text=text,
                tokens=piece.tokens[:kept],
                log_probs=piece.log_probs[:kept],
                tops=piece.tops[:kept],
                final=final,
                output_tokens=len(stream.tokens),
                finish_reason=_reason(stream, call.end_ids, call.most) if final else None,
            )
            if final:
                return


def _reason(stream: TextStream, end_ids: tuple[int, ...], most: int) -> str:
    """Return why an answer ended; one that ends early without an end token has met its grammar."""
    ended = bool(stream.tokens) and stream.tokens[-1] in end_ids
    return "stop" if stream.stopped or ended or len(stream.tokens) < most else "length"
