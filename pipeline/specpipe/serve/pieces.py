"""Converts a server's responses to pieces of an answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from specpipe.core.contracts import Logits
from specpipe.core.endpoint import Model, Tensors
from specpipe.runtime.triton.tensors import newest_scores

Tops = tuple[tuple[int, float], ...]  # likeliest tokens and their log probabilities


@dataclass(frozen=True)
class Acceptance:
    """How speculation went for one request."""

    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    reported: bool = True  # False: the server does not tell, and the numbers are 0
    steps: tuple[int, ...] | None = None  # that accepted 0, 1, ... tokens; None: not known

    @property
    def rate(self) -> float:
        """Accepted by drafted tokens; 0 if nothing was drafted."""
        return self.accepted_draft_tokens / self.draft_tokens if self.draft_tokens else 0.0


@dataclass(frozen=True)
class PromptScores:
    """What a model expects after every token of a prompt of n tokens."""

    log_probs: tuple[float, ...]  # [n] of the token that follows; the last is NaN
    top_ids: tuple[int, ...]  # [n] the most likely token
    top_log_probs: tuple[float, ...]  # [n]


@dataclass(frozen=True)
class Piece:
    """One response: new text or tokens, and the counters that were reported last."""

    text: str
    tokens: tuple[int, ...]
    final: bool
    acceptance: Acceptance
    output_tokens: int | None  # of the answer so far; None: not reported here
    at_s: float  # seconds since the request was sent
    prompt_tokens: int | None = None  # None: not reported
    log_probs: tuple[float, ...] = ()  # of `tokens`, if they were requested
    tops: tuple[Tops, ...] = ()  # of every token, if they were requested
    prompt_scores: PromptScores | None = None  # in the first piece, if they were requested
    finish_reason: str | None = None  # stop or length; known at the end, if it is reported


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
    output_tokens: int = 0  # so far, where a response has its own
    finish_reason: str | None = None  # as reported last

    def piece(self, result: Any, at_s: float) -> Piece:
        """Read one response; the last may be empty but for the mark that it is the last."""
        names = self.model.tensors
        text = _only_text(result.get_response(), names)
        if text is not None:  # most responses of a stream
            final = is_final(result)
            return Piece(self._text(text, final=final), (), final, self.acceptance, None, at_s)
        answer = result.as_numpy(names.answer)
        final = is_final(result)
        in_tokens = bool(names.prompt_length)
        tokens = _row(result, names.answer) if in_tokens else ()
        drafted, accepted = (_whole(result, name) for name in (names.drafted, names.accepted))
        if drafted is not None:
            steps = _row(result, names.histogram) or None
            self.acceptance = Acceptance(drafted, accepted or 0, steps=steps)
        return Piece(
            text="" if in_tokens or answer is None else self._text(_joined(answer), final=final),
            tokens=tokens,
            final=final,
            acceptance=self.acceptance,
            output_tokens=self._output_tokens(_whole(result, names.output_tokens)),
            at_s=at_s,
            prompt_tokens=_whole(result, names.prompt_tokens),
            finish_reason=self._finish(_word(result, names.finish_reason)),
            log_probs=_log_probs(result, names.log_probs, len(tokens)),
            tops=_tops(result, names),
            prompt_scores=_prompt_scores(result, self.model),
        )

    def _output_tokens(self, reported: int | None) -> int | None:
        """Return the tokens so far; the last response of some servers is empty."""
        if not self.model.counts_new_tokens:
            return reported
        self.output_tokens += reported or 0
        return self.output_tokens

    def _finish(self, reported: str | None) -> str | None:
        """Return why the answer ended; vLLM's backend writes `None` until it has."""
        if reported not in (None, "None"):
            self.finish_reason = reported
        return self.finish_reason

    def _text(self, raw: bytes, *, final: bool) -> str:
        """Return what is new; a character that is not complete yet is not."""
        text = raw.decode("utf-8")
        if not self.model.cumulative:
            return text
        whole = text if final else text.rstrip("\ufffd")
        new = whole[len(self.text) :]
        self.text += new
        return new


def _joined(answer: Any) -> bytes:
    return b"".join(answer.reshape(-1))


def _only_text(response: Any, names: Tensors) -> bytes | None:
    """Return the text of a response that has nothing else; None for any other response."""
    outputs, contents = response.outputs, response.raw_output_contents
    if len(outputs) != 1 or len(contents) != 1 or outputs[0].name != names.answer:
        return None
    raw = contents[0]
    size = int.from_bytes(raw[:4], "little")  # of the only text of a BYTES tensor
    return raw[4:] if not names.prompt_length and len(raw) == 4 + size else None


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


def _row(result: Any, name: str) -> tuple[Any, ...]:
    """Return all values of an output; empty if there is none."""
    array = result.as_numpy(name) if name else None
    return () if array is None else tuple(array.reshape(-1).tolist())


def _log_probs(result: Any, name: str, count: int) -> tuple[float, ...]:
    """Return those of the new tokens; empty if there is no such output."""
    array = result.as_numpy(name) if name else None
    return () if array is None else newest_scores(array, count)


def _tops(result: Any, names: Tensors) -> tuple[Tops, ...]:
    ids, values = (result.as_numpy(n) if n else None for n in (names.top_ids, names.top_log_probs))
    if ids is None or values is None or not ids.size:
        return ()
    rows = zip(*(a.reshape(-1, a.shape[-1]).tolist() for a in (ids, values)), strict=True)
    return tuple(tuple(zip(*row, strict=True)) for row in rows)


def _prompt_scores(result: Any, model: Model) -> PromptScores | None:
    names = model.tensors
    log_probs = _row(result, names.prompt_log_probs)
    if not log_probs:
        return None
    tops = (_row(result, name) for name in (names.prompt_top_ids, names.prompt_top_log_probs))
    return PromptScores(log_probs, *tops)


def _word(result: Any, name: str) -> str | None:
    """Return the only text of an output; None if there is none."""
    array = result.as_numpy(name) if name else None
    found = "" if array is None or array.size == 0 else array.reshape(-1)[0].decode()
    return found or None


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
