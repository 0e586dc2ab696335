"""Answers in tokens as pieces of text, for prompts of token ids and for log probabilities."""

import contextlib
from dataclasses import replace

from specpipe.openai.streaming import Pieces
from specpipe.runtime.tokens import TextStream, TextTokenizer


async def with_text(
    pieces: Pieces,
    tokenizer: TextTokenizer,
    stops: tuple[str, ...],
    end_ids: tuple[int, ...],
    most: int,
) -> Pieces:
    """Yield pieces of tokens with their text; end at the first stop text, or after `most` tokens.

    Tokens after a stop text are dropped, with their log probabilities.
    """
    stream = TextStream(tokenizer, stops, end_ids)
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
                final=final,
                output_tokens=len(stream.tokens) if final else None,
                finish_reason=_reason(stream, end_ids, most) if final else None,
            )
            if final:
                return


def _reason(stream: TextStream, end_ids: tuple[int, ...], most: int) -> str:
    """Return why an answer ended; one that ends early without an end token has met its grammar."""
    ended = bool(stream.tokens) and stream.tokens[-1] in end_ids
    return "stop" if stream.stopped or ended or len(stream.tokens) < most else "length"
