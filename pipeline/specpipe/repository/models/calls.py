"""One call of an engine: what upstream's `tensorrt_llm` takes and gives, as records. No Triton."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from specpipe.contracts import Logits, Sampling


@dataclass(frozen=True, eq=False)
class Call:
    """Tokens in, and how the next ones are chosen."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits: (token, amount)
    draft: tuple[int, ...] = ()  # to be verified: the engine answers with one token more at most
    draft_logits: Logits | None = None  # [n, V]  what the draft was drawn from; None: certain
    wants_logits: bool = False
    log_probs: bool = False
    wants_acceptance: bool = False  # what the engine drafted by itself, if it tells
    speculates: bool = True  # False: an engine of lookahead decoding decodes plainly

    def __post_init__(self) -> None:
        """Check what the engines take for granted."""
        assert self.max_tokens >= 1 and self.prompt


@dataclass(frozen=True, eq=False)
class Reply:
    """New tokens, never the prompt's."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...] = ()
    logits: Logits | None = None  # [n, V]
    drafted: int = 0  # by the engine itself, in the whole call so far
    accepted: int = 0


class Engine(Protocol):
    """A model that answers calls; several threads or processes may call it at a time."""

    def infer(self, call: Call) -> Generator[Reply, None, None]:
        """Yield the answer in one piece or several; closing the generator cancels the call.

        Raises EngineError with the engine's own words.
        """
        ...
