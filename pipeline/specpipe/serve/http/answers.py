"""Converts the objects of OpenAI's answers to pieces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from specpipe.serve.http.events import Json, find
from specpipe.serve.http.requests import HttpRequest
from specpipe.serve.pieces import Acceptance, Piece

_UNREPORTED = Acceptance(reported=False)
_SPOKEN = ("content", "reasoning_content", "reasoning", "tool_calls")  # of a delta


@dataclass
class AnswerReader:
    """Reads the objects of one answer, in order."""

    request: HttpRequest
    acceptance: Acceptance = _UNREPORTED
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    ended: bool = False  # whether the answer is complete; usage may follow
    last_token: int | None = None

    def pieces(self, objects: Iterable[tuple[Json, float]]) -> Iterator[Piece]:
        """Yield the pieces of a stream, of objects with their arrival times in seconds.

        The last one has what the server reports after it, and its own time.
        """
        final: Piece | None = None
        at_s = 0.0
        for values, at_s in objects:
            piece = self.read(values, at_s)
            if self.ended and final is None:
                final = piece
            elif piece is not None:
                yield piece
        yield self._completed(final or Piece("", (), True, self.acceptance, None, at_s))

    def read(self, values: Json, at_s: float) -> Piece | None:
        """Take one object; return the new text or tokens, or the end; None for neither."""
        names = self.request.model.tensors
        self._count(values)
        reason = find(values, names.finish_reason)
        self.finish_reason, self.ended = reason or self.finish_reason, self.ended or bool(reason)
        tokens = self._tokens(values, bool(reason))
        text = self._text(values)
        if not (text or tokens or reason or self._speaks(values)):
            return None
        return Piece(text, tokens, bool(reason), self.acceptance, None, at_s)

    def whole(self, values: Json, at_s: float) -> Piece:
        """Return an answer that is not streamed."""
        found = self.read(values, at_s) or Piece("", (), True, self.acceptance, None, at_s)
        return self._completed(found)

    def _completed(self, piece: Piece) -> Piece:
        return replace(
            piece,
            final=True,
            acceptance=self.acceptance,
            output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens,
            finish_reason=self.finish_reason,
        )

    def _count(self, values: Json) -> None:
        """Take the counts of an object; the later ones are of more of the answer."""
        names = self.request.model.tensors
        output, prompt = (find(values, n) for n in (names.output_tokens, names.prompt_tokens))
        self.output_tokens = self.output_tokens if output is None else int(output)
        self.prompt_tokens = self.prompt_tokens if prompt is None else int(prompt)
        drafted, accepted = (find(values, n) for n in (names.drafted, names.accepted))
        if drafted is not None and accepted is not None:
            steps = find(values, names.histogram)
            self.acceptance = Acceptance(
                int(drafted), int(accepted), steps=tuple(map(int, steps)) if steps else None
            )

    def _text(self, values: Json) -> str:
        if not self.request.chat:
            return find(values, "choices.text") or ""
        part = "delta" if self.request.streams else "message"
        return find(values, f"choices.{part}.content") or ""

    def _speaks(self, values: Json) -> bool:
        """Tell whether a chunk has something that is not the answer's text, as a tool call."""
        delta = find(values, "choices.delta")
        return isinstance(delta, dict) and any(delta.get(name) for name in _SPOKEN)

    def _tokens(self, values: Json, last: bool) -> tuple[int, ...]:
        """Return the new tokens; TensorRT-LLM leaves the stop token that ended an answer out."""
        names = self.request.model.tensors
        if not names.answer.endswith("token_ids"):
            return ()
        tokens = tuple(map(int, find(values, names.answer) or ()))
        stop = find(values, "choices.stop_reason") if last else None
        *_, previous = (self.last_token, *tokens)
        if isinstance(stop, int) and previous != stop:
            tokens = (*tokens, stop)
        self.last_token = tokens[-1] if tokens else self.last_token
        return tokens
