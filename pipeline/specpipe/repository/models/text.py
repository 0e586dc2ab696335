"""`ensemble` and `tensorrt_llm_bls`: text in, text out, streamed or whole.

Both names are this one model. It tokenises a request, asks whatever decodes (see `sources`), and
hands the text on as it becomes certain; so streaming, stop words and cancellation work with
speculation, which they do not in upstream's own ensemble and BLS.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpipe.errors import Unsupported
from specpipe.repository.models import requests, triton
from specpipe.repository.models.exchange import Counters, Progress, Request
from specpipe.repository.models.responses import perf_tensors, text_tensor
from specpipe.repository.models.sources import open_source
from specpipe.repository.models.tensors import newest_names
from specpipe.repository.models.tokens import TextStream, TextTokenizer, load_tokenizer
from specpipe.repository.models.traffic import Traffic
from specpipe.speculate.decode import Limits
from specpipe.speculate.sampling import check_sampling


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer; the engines belong to other models."""
        options = triton.parameters(args)
        folder = triton.model_folder(args)
        self._tokenizer = load_tokenizer(folder / options["tokenizer_dir"])
        self._max_input_len = int(options["max_input_len"])
        self._max_seq_len = int(options["max_seq_len"])
        self._decoupled = triton.is_decoupled(args)
        self._source = open_source(options, args["model_name"])
        self._traffic = Traffic(args["model_name"])
        triton.trim_memory()

    def execute(self, batch: list[Any]) -> None:
        """Answer every request, in a thread each if the source of tokens takes many at a time."""
        for request in batch:
            answer = (request, triton.Responder(request))
            if self._source.takes_many:
                threading.Thread(target=self._serve, args=answer, daemon=True).start()
            else:
                self._serve(*answer)

    def finalize(self) -> None:
        """Drop the metrics; those that outlive this call crash the process."""
        del self._source, self._traffic

    def _serve(self, call: Any, responder: triton.Responder) -> None:
        with self._traffic.request():
            try:
                self._answer(call, responder)
            except Exception as error:
                responder.fail(error)

    def _answer(self, call: Any, responder: triton.Responder) -> None:
        tensors = newest_names(triton.input_tensors(call))
        parameters = triton.request_parameters(call)
        asked = requests.text_request(tensors, self._source.supported, parameters)
        if asked.stream and not self._decoupled:
            raise Unsupported(
                "stream is true: this server answers in one piece; to stream, set "
                "serving.decoupled: true and package it again"
            )
        ids = self._tokenizer.encode(asked.text, self._max_input_len)
        requests.check_lengths(len(ids), asked.max_tokens, self._max_input_len, self._max_seq_len)
        bad_words = self._tokenizer.words(asked.bad_words)
        sampling = requests.sampling(tensors, self._tokenizer.end_ids, bad_words)
        check_sampling(sampling, self._tokenizer.vocab_size)
        request = Request(
            request_id="",
            prompt=tuple(ids),
            sampling=sampling,
            limits=Limits(asked.max_tokens),
            num_draft_tokens=asked.num_draft_tokens,
            log_probs="return_log_probs" in asked.wants,
            bias=self._tokenizer.bias(asked.bias),
            use_draft_logits=asked.use_draft_logits,
        )
        with closing(self._source.ask(request, responder.is_cancelled)) as steps:
            _Answer(responder, asked, self._tokenizer, ids).run(steps)


@dataclass
class _Answer:
    """The responses to one text request."""

    responder: triton.Responder
    asked: requests.TextRequest
    tokenizer: TextTokenizer
    prompt: list[int]
    scores: list[float] = field(default_factory=list)  # of every token so far
    held: str = ""  # text that was not sent yet
    held_scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = TextStream(self.tokenizer, self.asked.stop_words)

    def run(self, steps: Iterator[Progress]) -> None:
        """Turn the engine's steps into responses, the last of them final."""
        for step in steps:
            self._take(step)
            if step.finish is not None or self._text.stopped:
                self._finish(step.counters)
                return
            if self.asked.stream and (self.held or self.held_scores):
                self._send(self.held, self.held_scores, step.counters, final=False)
                self.held, self.held_scores = "", []

    def _take(self, step: Progress) -> None:
        before = len(self._text.tokens)
        self.held += self._text.push(step.tokens)
        count = len(self._text.tokens) - before
        self.scores += step.log_probs[:count]
        self.held_scores += step.log_probs[:count]

    def _finish(self, counters: Counters) -> None:
        rest = self.held + self._text.finish()
        if self.asked.stream:
            self._send(rest, self.held_scores, counters, final=True)
        else:
            self._send(self._whole(), self.scores, counters, final=True)

    def _whole(self) -> str:
        """Return the answer of a request that is not streamed, after the prompt if asked."""
        answer = self._text.text
        if not self.asked.echo:
            return answer
        text = self.tokenizer.decode([*self.prompt, *self._text.tokens])
        behind_stop_word = len(self.tokenizer.decode(self._text.tokens)) - len(answer)
        return text[: len(text) - behind_stop_word]

    def _send(self, text: str, scores: list[float], counters: Counters, *, final: bool) -> None:
        wants = self.asked.wants
        answer: dict[str, NDArray[Any]] = {"text_output": text_tensor(text)}
        if "return_log_probs" in wants:
            answer["output_log_probs"] = np.array([[scores]], np.float32)
            answer["cum_log_probs"] = np.array([[sum(self.scores)]], np.float32)
        if "return_perf_metrics" in wants:
            answer |= perf_tensors(counters, len(self.prompt))
        if "return_num_input_tokens" in wants:
            answer["num_input_tokens"] = np.array([[len(self.prompt)]], np.int32)
        if final and "return_num_output_tokens" in wants:
            answer["num_output_tokens"] = np.array([[len(self._text.tokens)]], np.int32)
        self.responder.send(answer, final=final)
