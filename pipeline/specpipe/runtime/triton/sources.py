"""The sources of a text model's tokens: the engine's socket, or calls of other models (BLS)."""

import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from specpipe.core.guide import Guide
from specpipe.runtime.engine_client import EngineClient
from specpipe.runtime.exchange import Counters, EngineProgress, Request
from specpipe.runtime.failures import Cancelled
from specpipe.runtime.rendezvous import model_socket
from specpipe.runtime.triton import engine_guides, guides, unsupported

WATCH_SECONDS = 0.2  # between checks whether the client is connected; each calls tritonserver

Steps = Generator[EngineProgress, None, None]
Take = Callable[[EngineProgress], bool]  # takes a step; tells whether it completes the answer
IsCancelled = Callable[[], bool]


class TokenSource(Protocol):
    """Something that decodes requests."""

    @property
    def takes_many(self) -> bool:
        """Whether several threads may ask at a time."""
        ...

    @property
    def supported(self) -> frozenset[str]:
        """Tensors that this source supports and others refuse."""
        ...

    def ask(self, request: Request, take: Take, is_cancelled: IsCancelled) -> None:
        """Have every step of a request taken, in any thread; return when the answer is complete.

        Raises Cancelled if `is_cancelled()` turns true, and what `take` raises.
        """

    def count(self, used: Counters) -> None:
        """Count the steps of a request after it has ended in any way."""

    def close(self) -> None:
        """Release what the source holds; requests in flight fail."""


def open_source(options: Mapping[str, str], model: str, end_ids: tuple[int, ...]) -> TokenSource:
    """Return the source that a text model's parameters name; `end_ids` are the model's."""
    if "loop" not in options:
        return SocketSource(EngineClient(model_socket(os.getppid(), os.environ)))
    return bls_source(options, model, end_ids)


@dataclass(frozen=True)
class SocketSource:
    """The process of the CPU engine, which queues and speculates."""

    client: EngineClient
    takes_many: bool = True
    supported: frozenset[str] = guides.SUPPORTED

    def ask(self, request: Request, take: Take, is_cancelled: IsCancelled) -> None:
        """See `TokenSource`."""
        self.client.ask(request, take, is_cancelled, WATCH_SECONDS)

    def count(self, used: Counters) -> None:
        """See `TokenSource`; the engine's process has counted its steps."""

    def close(self) -> None:
        """See `TokenSource`."""
        self.client.close()


@dataclass(frozen=True)
class LoopSource:
    """A loop in this process that calls engines; Triton runs several of these processes."""

    loop: Callable[[Request], Steps]
    counted: Callable[[Counters], None]
    check: Callable[[Guide, Request], None]  # raises what is wrong with a guide
    supported: frozenset[str]
    takes_many: bool = False

    def ask(self, request: Request, take: Take, is_cancelled: IsCancelled) -> None:
        """See `TokenSource`; every step is taken in this thread."""
        if request.guide is not None:
            self.check(request.guide, request)
        with closing(self.loop(request)) as steps:
            for step in steps:
                if is_cancelled():
                    raise Cancelled
                if take(step):
                    return

    def count(self, used: Counters) -> None:
        """See `TokenSource`."""
        self.counted(used)

    def close(self) -> None:
        """See `TokenSource`; nothing is held."""


def bls_source(options: Mapping[str, str], model: str, end_ids: tuple[int, ...]) -> LoopSource:
    """Return the loop over the models that the parameters name."""
    from specpipe.runtime.loops import draft_and_verify, follow_engine
    from specpipe.runtime.triton.bls import TritonEngine
    from specpipe.runtime.triton.metrics import Meter

    engine = partial(
        TritonEngine,
        table=options["table"],
        padded_vocab_size=int(options["padded_vocab_size"]),
        decoupled=options["engine_decoupled"] == "true",
    )
    most = int(options["num_draft_tokens"])
    target = engine(options["tensorrt_llm_model_name"])
    meter = Meter(model, options["method"])
    if options["loop"] == "draft_target":
        draft = engine(options["tensorrt_llm_draft_model_name"])
        loop = partial(draft_and_verify, target, draft, most=most)
    else:
        plain = bool(options["draft_limit"])
        loop = partial(follow_engine, target, most=most, can_be_plain=plain)
    check = partial(engine_guides.check, end_ids=end_ids, by=options["guides"])
    supported = unsupported.BIAS | (guides.SUPPORTED if options["guides"] else frozenset())
    return LoopSource(loop, meter.add_request, check, supported)
