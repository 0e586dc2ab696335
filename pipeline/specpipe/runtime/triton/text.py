"""`ensemble` and `tensorrt_llm_bls`: text in, text out, streamed or whole.

Both names run the same code. It tokenises a request, reads tokens from a source (see `sources`) and
sends text as soon as later tokens cannot change it. So streaming, stop words and cancellation work
together with speculation. In upstream's ensemble and BLS they do not.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from specpipe.core.errors import Unsupported
from specpipe.runtime import bounds
from specpipe.runtime.exchange import PROBE_ID, Request
from specpipe.runtime.failures import EngineError
from specpipe.runtime.guards import Threads, harmless
from specpipe.runtime.text_answer import TextAnswer
from specpipe.runtime.tokens import load_tokenizer
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import guides, requests
from specpipe.runtime.triton.sources import open_source
from specpipe.runtime.triton.tensors import newest_names
from specpipe.runtime.triton.traffic import Traffic
from specpipe.speculate.decode import Limits
from specpipe.speculate.sampling import check_sampling

MOST_REQUESTS = 256  # at a time, in a repository that names no number


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
        self._source = open_source(options, args["model_name"], self._tokenizer.end_ids)
        self._traffic = Traffic(args["model_name"])
        self._threads = Threads(
            int(options.get("max_requests", MOST_REQUESTS)), "requests are in flight"
        )
        triton.trim_memory()

    def execute(self, batch: list[Any]) -> None:
        """Answer every request, in a thread each if the source of tokens takes many at a time."""
        for request in batch:
            responder = triton.TritonResponder(request)
            if not self._source.takes_many:
                self._serve(request, responder)
                continue
            try:
                self._threads.start(self._serve, request, responder)
            except EngineError as error:
                harmless(responder.fail, error)

    def finalize(self) -> None:
        """Drop the metrics; those that outlive this call crash the process."""
        self._source.close()
        del self._source, self._traffic

    def _serve(self, call: Any, responder: triton.TritonResponder) -> None:
        uncounted = call.request_id() == PROBE_ID
        with nullcontext() if uncounted else self._traffic.request():
            try:
                self._answer(call, responder)
            except Exception as error:
                harmless(responder.fail, error)

    def _answer(self, call: Any, responder: triton.TritonResponder) -> None:
        tensors = newest_names(triton.input_tensors(call))
        bounds.check_texts(tensors, self._tokenizer.most_bytes(self._max_input_len))
        parameters = triton.request_parameters(call)
        asked = requests.text_request(tensors, self._source.supported, parameters)
        if asked.stream and not self._decoupled:
            raise Unsupported(
                "stream is true: this server answers in one piece; to stream, set "
                "serving.decoupled: true and package it again"
            )
        ids = self._tokenizer.encode_prompt(asked.prompt, self._max_input_len)
        room = self._max_seq_len - len(ids)
        if requests.fits_answer(parameters) and room > 0:
            asked = replace(asked, max_tokens=min(asked.max_tokens, room))
        requests.check_lengths(len(ids), asked.max_tokens, self._max_input_len, self._max_seq_len)
        bad_words = self._tokenizer.words(asked.bad_words)
        sampling = requests.sampling(tensors, self._tokenizer.end_ids, bad_words)
        check_sampling(sampling, self._tokenizer.vocab_size)
        request = Request(
            request_id=PROBE_ID if call.request_id() == PROBE_ID else "",
            prompt=tuple(ids),
            sampling=sampling,
            limits=Limits(asked.max_tokens),
            num_draft_tokens=asked.num_draft_tokens,
            log_probs="return_log_probs" in asked.wants,
            bias=self._tokenizer.bias(asked.bias),
            use_draft_logits=asked.use_draft_logits,
            cache_salt=requests.cache_salt(parameters),
            guide=guides.read_guide(tensors),
        )
        answer = TextAnswer(responder, asked, self._tokenizer, ids, sampling.end_ids)
        try:
            self._source.ask(request, answer.take, responder.is_cancelled)
        finally:
            if answer.used is not None and request.request_id != PROBE_ID:
                harmless(self._source.count, answer.used)
