"""Turns requests into streams of a batcher."""

from dataclasses import dataclass, field

from specpipe.runtime.assembly import Runtime
from specpipe.runtime.batcher import Batcher, Event
from specpipe.runtime.budget import Budget
from specpipe.runtime.exchange import PROBE_ID, Request
from specpipe.runtime.grammars import Grammars, no_compiler
from specpipe.runtime.stream import Stream
from specpipe.speculate.decode import Decoding, read_context


@dataclass
class DeploymentDecoder:
    """See `scheduler.Decoder`."""

    deployment: Runtime
    budget: Budget
    grammars: Grammars = field(default_factory=lambda: Grammars(no_compiler))
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = self.deployment.batcher(self.budget)

    def add(self, request: Request) -> Stream:
        """Take a request; raises ConfigError if its number of draft tokens is not possible.

        Raises what is wrong with its guide, too.
        """
        constraint = None
        if request.guide is not None:
            constraint = self.grammars.constraint(request.guide, request.sampling.end_ids)
        decoding = self.deployment.decoding(
            request.prompt,
            request.sampling,
            request.limits,
            request.num_draft_tokens,
            log_probs=request.log_probs,
            tops=request.tops,
            constraint=constraint,
        )
        if request.context_logits:
            decoding = _after_context(request, decoding)
        counted = request.request_id != PROBE_ID
        return self.deployment.add(self.batcher, decoding, counted=counted, salt=request.cache_salt)

    def remove(self, stream: Stream) -> None:
        """End a stream, wherever it is."""
        self.batcher.remove(stream)

    def round(self) -> list[tuple[Stream, Event]]:
        """Run every engine once; see `Batcher`."""
        return self.batcher.round()


def _after_context(request: Request, decoding: Decoding) -> Decoding:
    yield from read_context(request.prompt)
    yield from decoding
