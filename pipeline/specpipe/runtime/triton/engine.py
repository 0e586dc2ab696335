"""`tensorrt_llm`: tokens in, tokens out; the model that holds the engines."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from specpipe.config.records import parse_record
from specpipe.config.speculation import Speculation
from specpipe.core.contracts import Logits
from specpipe.core.endpoint import Carrier
from specpipe.core.errors import ConfigError
from specpipe.runtime import bounds, context, prompt_scores
from specpipe.runtime.assembly import limit_draft, load_runtime
from specpipe.runtime.channel import EngineSocket
from specpipe.runtime.context import ContextCollector
from specpipe.runtime.decoder import DeploymentDecoder
from specpipe.runtime.exchange import Counters, Request
from specpipe.runtime.failures import Cancelled
from specpipe.runtime.grammars import Grammars, compiler_of
from specpipe.runtime.guards import harmless
from specpipe.runtime.prompt_scores import PromptScorer
from specpipe.runtime.rendezvous import model_socket
from specpipe.runtime.scheduler import Listener, Scheduler
from specpipe.runtime.tokens import load_tokenizer
from specpipe.runtime.triton import api as triton
from specpipe.runtime.triton import guides, requests, token_requests, unsupported, upstream_rules
from specpipe.runtime.triton.batch_metrics import BatchMeter
from specpipe.runtime.triton.metrics import Meter
from specpipe.runtime.triton.responses import perf_tensors
from specpipe.speculate.decode import Limits, Step

_SUPPORTED = (
    context.SUPPORTED | prompt_scores.SUPPORTED | guides.SUPPORTED | frozenset(upstream_rules.OFF)
)


class TritonPythonModel:
    """Triton's entry points."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engines and start the scheduler."""
        options = triton.parameters(args)
        folder = triton.model_folder(args)
        self._speculation: Speculation = parse_record(options["speculation"], Speculation)
        roles = json.loads(options["engines"])
        engines = {role: folder / path for role, path in roles.items()}
        deployment = load_runtime(
            engines, options["backend"], self._speculation, int(options["max_num_tokens"])
        )
        self._decoupled = triton.is_decoupled(args)
        self._carrier = cast(Carrier, options["draft_limit"]) if options["draft_limit"] else None
        self._vocab_size = deployment.facts["target"].vocab_size
        self._max_input_len = int(options["max_input_len"])
        self._max_seq_len = int(options["max_seq_len"])
        tokenizer = folder / options["tokenizer_dir"]
        self._grammars = Grammars(lambda: compiler_of(load_tokenizer(tokenizer), self._vocab_size))
        decoder = DeploymentDecoder(deployment, deployment.warm_up(), self._grammars)
        named = args["model_name"], self._speculation.method
        batch_meter = BatchMeter(*named, decoder.batcher)
        meter = Meter(*named, also=batch_meter.export)

        def observe(step: Step) -> None:
            batch_meter.add(step)
            meter.add(step)

        self._channel = EngineSocket(
            path=model_socket(os.getppid(), os.environ),
            submit=self._submit,
            probe=lambda answer: self._scheduler.probe(answer),
            most_bytes=bounds.request_bytes(self._max_input_len),
        )
        self._scheduler = Scheduler(
            decoder,
            int(options["max_batch_size"]),
            int(options["max_queue_size"]),
            observe=observe,
            rest=meter.export,
            after_round=self._channel.flush,
        )
        self._scheduler.start()
        self._channel.start()
        triton.trim_memory()

    def execute(self, batch: list[Any]) -> None:
        """Queue every request; answers are sent from the scheduler's thread."""
        for request in batch:
            responder = triton.TritonResponder(request)
            try:
                self._accept(request, responder)
            except Exception as error:
                harmless(responder.fail, error)

    def finalize(self) -> None:
        """End every request; metrics that outlive this call crash the process."""
        self._channel.close()
        self._scheduler.close()
        del self._scheduler

    def _accept(self, request: Any, responder: triton.TritonResponder) -> None:
        tensors = triton.input_tensors(request)
        if requests.flag(tensors, "stop"):
            if not request.request_id():
                raise ConfigError("a request with stop: true must carry the id of the one to stop")
            self._scheduler.stop(request.request_id())
            responder.end()
            return
        parsed = self._parse(request, tensors)
        self._submit(parsed, _Answer.of(responder, tensors, parsed, self._vocab_size))

    def _submit(self, request: Request, listener: Listener) -> None:
        """Queue a request, whichever way it came."""
        limit_draft(self._speculation, request.num_draft_tokens)
        if request.guide is not None:
            self._grammars.check(request.guide)  # here, since it may take long
        self._scheduler.submit(request, listener)

    def _parse(self, request: Any, tensors: requests.Tensors) -> Request:
        upstream_rules.check_streaming(tensors, decoupled=self._decoupled)
        bounds.check_tokens(tensors, self._max_input_len, "max_input_len")
        unsupported.refuse_unsupported(tensors, _SUPPORTED)
        parameters = triton.request_parameters(request)
        asked = token_requests.read_request(
            tensors,
            self._vocab_size,
            self._max_input_len,
            self._max_seq_len,
            fit=requests.fits_answer(parameters),
        )
        wants_context = requests.flag(tensors, context.FLAG)
        if wants_context:
            context.check_size(len(asked.prompt), self._vocab_size)
        return Request(
            request_id=request.request_id(),
            prompt=asked.prompt,
            sampling=asked.sampling,
            limits=Limits(asked.max_tokens, asked.stop_words),
            num_draft_tokens=upstream_rules.asked_limit(tensors, parameters, self._carrier),
            log_probs=requests.flag(tensors, "return_log_probs"),
            tops=token_requests.tops(tensors),
            context_logits=wants_context or requests.flag(tensors, prompt_scores.FLAG),
            cache_salt=requests.cache_salt(parameters),
            guide=guides.read_guide(tensors),
        )


@dataclass
class _Answer:
    """The listener of one request: steps into responses."""

    responder: triton.TritonResponder
    streaming: bool
    echo: tuple[int, ...]  # what a whole answer begins with
    prompt_length: int
    wants: frozenset[str]
    log_probs: bool
    tops: int
    tokens: list[int]
    scores: list[float]
    likeliest: list[tuple[tuple[int, float], ...]]  # of tokens that were not sent yet
    context: ContextCollector | None
    scorer: PromptScorer | None
    sends_context: bool

    @staticmethod
    def of(
        responder: triton.TritonResponder,
        tensors: requests.Tensors,
        parsed: Request,
        vocab_size: int,
    ) -> "_Answer":
        streaming = requests.flag(tensors, "streaming")
        wants_context = requests.flag(tensors, context.FLAG)
        wants_scores = requests.flag(tensors, prompt_scores.FLAG)
        return _Answer(
            responder=responder,
            streaming=streaming,
            echo=upstream_rules.echo(tensors, parsed.prompt),
            prompt_length=len(parsed.prompt),
            wants=frozenset(n for n in requests.RETURNS if requests.flag(tensors, n)),
            log_probs=parsed.log_probs,
            tops=parsed.tops,
            tokens=[],
            scores=[],
            likeliest=[],
            context=ContextCollector.of(len(parsed.prompt), vocab_size)
            if wants_context and not streaming
            else None,
            scorer=PromptScorer(parsed.prompt) if wants_scores else None,
            sends_context=wants_context,
        )

    def is_cancelled(self) -> bool:
        return self.responder.is_cancelled()

    def on_logits(self, rows: Logits) -> None:
        if self.scorer is not None:
            self.scorer.add(rows)
        if self.context is not None:
            self.context.add(rows)
        elif self.sends_context:
            self.responder.send(context.piece(rows), final=False)

    def on_step(self, step: Step, counters: Counters) -> None:
        self.tokens += step.tokens
        self.scores += step.log_probs
        self.likeliest += step.tops
        last = step.finish is not None
        if self.streaming:
            self._send(list(step.tokens), counters, last)
        elif last:
            self._send([*self.echo, *self.tokens], counters, last)

    def on_stopped(self, counters: Counters) -> None:
        whole = [*self.echo, *self.tokens]
        self._send([] if self.streaming else whole, counters, last=True)

    def on_cancelled(self) -> None:
        self.on_error(Cancelled())

    def on_error(self, error: Exception) -> None:
        self.responder.fail(error)

    def _send(self, tokens: list[int], counters: Counters, last: bool) -> None:
        """Send a response; as upstream's, it has the scores of all tokens so far."""
        outputs: dict[str, NDArray[Any]] = {
            "output_ids": np.array([[tokens]], np.int32),
            "sequence_length": np.array([[len(tokens)]], np.int32),
        }
        if self.log_probs:
            outputs["output_log_probs"] = np.array([[self.scores]], np.float32)
            outputs["cum_log_probs"] = np.array([[sum(self.scores)]], np.float32)
        if self.tops:
            outputs |= self._tops()
        if "return_perf_metrics" in self.wants:
            outputs |= perf_tensors(counters, self.prompt_length)
        if "return_num_input_tokens" in self.wants:
            outputs["num_input_tokens"] = np.array([[self.prompt_length]], np.int32)
        if last and "return_num_output_tokens" in self.wants:
            outputs["num_output_tokens"] = np.array([[counters.output_tokens]], np.int32)
        if self.context is not None:
            outputs |= self.context.outputs()
        if self.scorer is not None:
            outputs |= self.scorer.outputs()
            self.scorer = None  # with the first tokens of a stream
        self.responder.send(outputs, final=last)

    def _tops(self) -> dict[str, NDArray[Any]]:
        """Return the likeliest tokens at the positions of a response, [1, n, k] each."""
        pairs = np.array(self.likeliest, np.float64).reshape(1, -1, self.tops, 2)
        self.likeliest = []
        return {
            "output_top_ids": pairs[..., 0].astype(np.int32),
            "output_top_log_probs": pairs[..., 1].astype(np.float32),
        }
