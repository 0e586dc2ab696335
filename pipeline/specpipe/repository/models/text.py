"""`ensemble` and `tensorrt_llm_bls`: text in, text out, streamed or whole.

Both names are this one model. A thread a request tokenises, calls `tensorrt_llm`, and hands the
text on as it becomes certain; so streaming, stop words and cancellation work with speculation,
which they do not in upstream's own ensemble and BLS.
"""

import threading
import uuid
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from specpipe.errors import Unsupported
from specpipe.repository.models import requests, triton
from specpipe.repository.models.tokens import TextStream, TextTokenizer, load_tokenizer
from specpipe.speculate.sampling import check_sampling

ENGINE = "tensorrt_llm"
WATCH_SECONDS = 0.05  # how often clients are asked whether they are still there
# Handed to the engine as they are; what else a request holds, this model answers itself.
_PASSED = {
    "temperature": "temperature",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_tokens": "min_tokens",
    "seed": "seed",
    "return_log_probs": "return_log_probs",
}
_PERF = (
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
)


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the tokenizer; the engine belongs to another model."""
        options = triton.parameters(args)
        folder = triton.model_folder(args)
        self._tokenizer = load_tokenizer(folder / options["tokenizer_dir"])
        self._max_input_len = int(options["max_input_len"])
        self._max_seq_len = int(options["max_seq_len"])
        self._decoupled = triton.is_decoupled(args)
        self._calls: dict[str, Any] = {}  # id of the inner request -> sender of the outer one
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()
        triton.trim_memory()

    def execute(self, batch: list[Any]) -> None:
        """Start a thread for every request; the engine's queue bounds how many there are."""
        for request in batch:
            sender = request.get_response_sender()
            thread = threading.Thread(target=self._serve, args=(request, sender), daemon=True)
            thread.start()

    def finalize(self) -> None:
        """End the watcher."""
        self._closing.set()
        self._watcher.join()

    def _watch(self) -> None:
        """Stop the engine's work for clients that are gone."""
        while not self._closing.wait(WATCH_SECONDS):
            for call, sender in dict(self._calls).items():
                if sender.is_cancelled():
                    stop_engine(call)

    def _serve(self, request: Any, sender: Any) -> None:
        try:
            self._answer(request, sender)
        except Exception as error:
            sender.send(triton.error_response(error), flags=triton.FINAL)

    def _answer(self, request: Any, sender: Any) -> None:
        tensors = triton.input_tensors(request)
        asked = requests.text_request(tensors)
        if asked.stream and not self._decoupled:
            raise Unsupported(
                "stream is true: this server answers in one piece; to stream, set "
                "serving.decoupled: true and package it again"
            )
        ids = self._tokenizer.encode(asked.text, self._max_input_len)
        requests.check_lengths(len(ids), asked.max_tokens, self._max_input_len, self._max_seq_len)
        bad_words = self._tokenizer.words(asked.bad_words)
        sampling = requests.sampling(tensors, self._tokenizer.end_id, bad_words)
        check_sampling(sampling, self._tokenizer.vocab_size)
        inner = engine_inputs(tensors, ids, asked.max_tokens, sampling.end_id, bad_words)
        answer = _Answer(sender, asked, self._tokenizer, ids)
        call = uuid.uuid4().hex
        self._calls[call] = sender
        responses = call_engine(call, inner, asked.num_draft_tokens)
        try:
            answer.run(responses, call)
        except BaseException:
            stop_engine(call)
            raise
        finally:
            responses.close()
            del self._calls[call]


def engine_inputs(
    tensors: requests.Tensors,
    ids: list[int],
    max_tokens: int,
    end_id: int,
    bad_words: tuple[tuple[int, ...], ...],
) -> dict[str, NDArray[Any]]:
    """Return the inputs of `tensorrt_llm` for a text request."""
    inputs: dict[str, NDArray[Any]] = {
        "input_ids": np.array([ids], np.int32),
        "input_lengths": np.array([[len(ids)]], np.int32),
        "request_output_len": np.array([[max_tokens]], np.int32),
        "end_id": np.array([[end_id]], np.int32),
        "streaming": np.array([[True]]),
        "return_perf_metrics": np.array([[True]]),
        "return_num_output_tokens": np.array([[True]]),
    }
    if bad_words:
        inputs["bad_words_list"] = requests.word_layout(bad_words)
    for ours, theirs in _PASSED.items():
        if ours in tensors:
            inputs[theirs] = tensors[ours].reshape(1, 1)
    return inputs


_OUTPUTS = [
    "output_ids",
    "sequence_length",
    "cum_log_probs",
    "output_log_probs",
    "num_output_tokens",
    *_PERF,
]


def call_engine(
    call: str, inputs: Mapping[str, NDArray[Any]], num_draft_tokens: int | None
) -> Generator[dict[str, NDArray[Any]], None, None]:
    """Yield the engine's responses; raises InnerError with the engine's own error.

    However it ends, the rest is fetched: a call that is left half-read keeps Triton from stopping.
    """
    extra: dict[str, int | bool] = {triton.SPELL_CODE: True}
    if num_draft_tokens is not None:
        extra["num_draft_tokens"] = num_draft_tokens
    request = pb_utils.InferenceRequest(
        model_name=ENGINE,
        requested_output_names=_OUTPUTS,
        inputs=[pb_utils.Tensor(name, array) for name, array in inputs.items()],
        request_id=call,
        parameters=extra,
    )
    responses = request.exec(decoupled=True)
    try:
        for response in responses:
            if response.has_error():
                raise triton.InnerError(response.error().message())
            if response.output_tensors():
                yield {t.name(): t.as_numpy() for t in response.output_tensors()}
    finally:
        for _ in responses:
            pass


def stop_engine(call: str) -> None:
    """Ask the engine to end a request at its next step."""
    inputs = {
        "input_ids": np.zeros((1, 1), np.int32),
        "input_lengths": np.ones((1, 1), np.int32),
        "request_output_len": np.ones((1, 1), np.int32),
        "stop": np.array([[True]]),
    }
    for _ in call_engine(call, inputs, None):
        pass


@dataclass
class _Answer:
    """The responses to one text request."""

    sender: Any
    asked: requests.TextRequest
    tokenizer: TextTokenizer
    prompt: list[int]
    scores: list[float] = field(default_factory=list)  # of every token so far
    held: str = ""  # text that was not sent yet
    held_scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._text = TextStream(self.tokenizer, self.asked.stop_words)

    def run(self, responses: Iterator[dict[str, NDArray[Any]]], call: str) -> None:
        """Turn the engine's responses into ours, the last of them final.

        Raises Cancelled if the client is gone.
        """
        for outputs in responses:
            ended = self._text.stopped  # then only the counters are of interest
            if not ended:
                self._take(outputs)
            if "num_output_tokens" in outputs:
                if self.sender.is_cancelled():
                    raise triton.Cancelled
                self._finish(outputs)
            elif self._text.stopped and not ended:
                stop_engine(call)
            elif self.asked.stream and (self.held or self.held_scores):
                self._send(self.held, self.held_scores, outputs, final=False)
                self.held, self.held_scores = "", []

    def _take(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        before = len(self._text.tokens)
        self.held += self._text.push(outputs["output_ids"].reshape(-1).tolist())
        count = len(self._text.tokens) - before
        if "output_log_probs" in outputs:
            scores = outputs["output_log_probs"].reshape(-1)[:count].tolist()
            self.scores += scores
            self.held_scores += scores

    def _finish(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        rest = self.held + self._text.finish()
        if self.asked.stream:
            self._send(rest, self.held_scores, outputs, final=True)
        else:
            self._send(self._whole(), self.scores, outputs, final=True)

    def _whole(self) -> str:
        """Return the answer of a request that is not streamed, after the prompt if asked."""
        answer = self._text.text
        if not self.asked.echo:
            return answer
        text = self.tokenizer.decode([*self.prompt, *self._text.tokens])
        behind_stop_word = len(self.tokenizer.decode(self._text.tokens)) - len(answer)
        return text[: len(text) - behind_stop_word]

    def _send(
        self, text: str, scores: list[float], outputs: Mapping[str, NDArray[Any]], *, final: bool
    ) -> None:
        wants = self.asked.wants
        answer: dict[str, NDArray[Any]] = {"text_output": triton.text_tensor(text)}
        if "return_log_probs" in wants:
            answer["output_log_probs"] = np.array([[scores]], np.float32)
            answer["cum_log_probs"] = np.array([[sum(self.scores)]], np.float32)
        if "return_perf_metrics" in wants:
            answer |= {name: outputs[name] for name in _PERF}
        if "return_num_input_tokens" in wants:
            answer["num_input_tokens"] = np.array([[len(self.prompt)]], np.int32)
        if final and "return_num_output_tokens" in wants:
            answer["num_output_tokens"] = np.array([[len(self._text.tokens)]], np.int32)
        self.sender.send(triton.response(answer), flags=triton.FINAL if final else 0)
