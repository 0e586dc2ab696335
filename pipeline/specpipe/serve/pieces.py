"""Converts a server's responses to pieces of an answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specpipe.core.contracts import Logits
from specpipe.core.endpoint import Model


@dataclass(frozen=True)
class Acceptance:
    """How speculation went for one request."""

    draft_tokens: int = 0
    accepted_draft_tokens: int = 0

    @property
    def rate(self) -> float:
        """Accepted by drafted tokens; 0 if nothing was drafted."""
        return self.accepted_draft_tokens / self.draft_tokens if self.draft_tokens else 0.0


@dataclass(frozen=True)
class Piece:
    """One response: new text or tokens, and the counters that were reported last."""

    text: str
    tokens: tuple[int, ...]
    final: bool
    acceptance: Acceptance
    output_tokens: int | None  # of the whole answer; known at the end
    at_s: float  # seconds since the request was sent


@dataclass(frozen=True)
class Generation:
    """A whole answer and its times, measured by the client."""

    text: str
    tokens: tuple[int, ...]
    acceptance: Acceptance
    output_tokens: int | None  # None: the server does not report it
    first_s: float  # to the first response
    total_s: float
    step_tokens: tuple[int, ...]  # tokens of every response; one response a step, if streamed


@dataclass
class Reader:
    """Reads the responses to one request, in order."""

    model: Model
    text: str = ""  # all of it so far
    acceptance: Acceptance = Acceptance()  # as reported last

    def piece(self, result: Any, at_s: float) -> Piece:
        """Read one response; the last may be empty but for the mark that it is the last."""
        names = self.model.tensors
        answer = result.as_numpy(names.answer)
        final = is_final(result)
        tokens = bool(names.prompt_length)
        drafted, accepted = (_whole(result, name) for name in (names.drafted, names.accepted))
        if drafted is not None:
            self.acceptance = Acceptance(drafted, accepted or 0)
        return Piece(
            text="" if tokens or answer is None else self._text(answer, final=final),
            tokens=tuple(int(i) for i in answer.reshape(-1))
            if tokens and answer is not None
            else (),
            final=final,
            acceptance=self.acceptance,
            output_tokens=_whole(result, names.output_tokens),
            at_s=at_s,
        )

    def _text(self, answer: Any, *, final: bool) -> str:
        """Return what is new; a character that is not complete yet is not."""
        text = b"".join(answer.reshape(-1)).decode("utf-8")
        if not self.model.cumulative:
            return text
        whole = text if final else text.rstrip("\ufffd")
        new = whole[len(self.text) :]
        self.text += new
        return new


def is_final(result: Any) -> bool:
    """Tell whether a response is the last of its request."""
    mark = result.get_response().parameters.get("triton_final_response")
    return mark is None or bool(mark.bool_param)


def context_rows(result: Any, model: Model) -> Logits | None:
    """Return the logits [n, V] of a response after some of the prompt's tokens, if it has any."""
    array = result.as_numpy(model.tensors.context_logits)
    return None if array is None else array.reshape(-1, array.shape[-1])


def _whole(result: Any, name: str) -> int | None:
    """Return an output's only value; some releases of upstream's `llmapi` model send digits."""
    array = result.as_numpy(name) if name else None
    return None if array is None or array.size == 0 else int(array.reshape(-1)[0])


def collect(pieces: Iterator[Piece]) -> Generation:
    """Put the pieces of one answer together; raises what they raise."""
    found = list(pieces)
    last = found[-1]
    tokens = tuple(token for piece in found for token in piece.tokens)
    return Generation(
        text="".join(piece.text for piece in found),
        tokens=tokens,
        acceptance=last.acceptance,
        output_tokens=last.output_tokens if last.output_tokens is not None else len(tokens) or None,
        first_s=found[0].at_s,
        total_s=last.at_s,
        step_tokens=tuple(len(piece.tokens) for piece in found),
    )
