"""Converts the steps of one text request to responses: text, scores, counters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from specpipe.runtime.acceptance_histogram import AcceptanceHistogram
from specpipe.runtime.exchange import Counters, EngineProgress
from specpipe.runtime.tokens import TextStream, TextTokenizer
from specpipe.runtime.triton import requests
from specpipe.runtime.triton.responses import perf_tensors, text_tensor


class Responder(Protocol):
    """The receiver of the responses to one request."""

    def send(self, outputs: Mapping[str, NDArray[Any]], *, final: bool) -> None:
        """Send a response with these tensors."""


@dataclass
class TextAnswer:
    """The responses to one text request.

    In a stream, the first and the last response carry performance outputs and the number of input
    tokens: more tensors in every response would cost tritonserver and the client as much as the
    text itself. The number of output tokens is in the last one, and in every one if requested.
    """

    responder: Responder
    asked: requests.TextRequest
    tokenizer: TextTokenizer
    prompt: list[int]
    end_ids: tuple[int, ...] = ()  # those of the request
    used: Counters | None = None  # by what was emitted: what a stop word cuts off does not count
    scores: list[float] = field(default_factory=list)  # of every token so far
    held: str = ""  # text that was not sent yet
    held_scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = TextStream(
            self.tokenizer, self.asked.stop_words, self.end_ids, self.asked.special
        )
        self._accepted = 0
        self._histogram = AcceptanceHistogram()
        self._begun = False  # a response was sent

    def take(self, step: EngineProgress) -> bool:
        """Turn one step into a response if it has text to send; tell whether it was the last."""
        used = self._count(step)
        if step.finish is not None or self._text.stopped:
            self._finish(used, "length" if step.finish == "length" else "stop")
            return True
        if self.asked.stream and (self.held or self.held_scores):
            self._send(self.held, self.held_scores, used)
            self.held, self.held_scores = "", []
        return False

    def _count(self, step: EngineProgress) -> Counters:
        before = len(self._text.tokens)
        self.held += self._text.push(step.tokens)
        count = len(self._text.tokens) - before
        self.scores += step.log_probs[:count]
        self.held_scores += step.log_probs[:count]
        self.used = step.counters
        if count < len(step.tokens):
            self.used = step.counters.cut(len(step.tokens) - count, count, self._accepted)
        self._accepted = self.used.accepted_draft_tokens
        self._histogram.add(len(step.tokens), step.counters, self.used)
        return self.used

    def _finish(self, counters: Counters, reason: str) -> None:
        reason = "stop" if self._text.stopped else reason
        rest = self.held + self._text.finish()
        if self.asked.stream:
            self._send(rest, self.held_scores, counters, reason)
        else:
            self._send(self._whole(), self.scores, counters, reason)

    def _whole(self) -> str:
        """Return the answer of a request that is not streamed, after the prompt if asked."""
        answer = self._text.text
        if not self.asked.echo:
            return answer
        text = self.tokenizer.decode([*self.prompt, *self._text.spoken])
        behind_stop_word = len(self.tokenizer.decode(self._text.spoken)) - len(answer)
        return text[: len(text) - behind_stop_word]

    def _send(
        self, text: str, scores: list[float], counters: Counters, reason: str | None = None
    ) -> None:
        """Send a response, the last one with the reason of the end."""
        wants, final = self.asked.wants, reason is not None
        answer: dict[str, NDArray[Any]] = {"text_output": text_tensor(text)}
        if "return_log_probs" in wants:
            answer["output_log_probs"] = np.array([[scores]], np.float32)
            answer["cum_log_probs"] = np.array([[sum(self.scores)]], np.float32)
        if "return_perf_metrics" in wants and (final or not self._begun):
            answer |= perf_tensors(counters, len(self.prompt))
            if final and self._histogram.known:
                row = self._histogram.row()
                answer["acceptance_histogram"] = np.array([row], np.int32)
        if "return_num_input_tokens" in wants and (final or not self._begun):
            answer["num_input_tokens"] = np.array([[len(self.prompt)]], np.int32)
        if "return_num_output_tokens" in wants and (final or self.asked.counts):
            answer["num_output_tokens"] = np.array([[len(self._text.tokens)]], np.int32)
        if reason is not None and "return_finish_reason" in wants:
            answer["finish_reason"] = text_tensor(reason)
        self._begun = True
        self.responder.send(answer, final=final)
