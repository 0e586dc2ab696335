"""One call of an engine: inputs and outputs of upstream's `tensorrt_llm` as records."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

from specpipe.core.contracts import Logits, Sampling
from specpipe.core.guide import Guide


@dataclass(frozen=True, eq=False)
class Call:
    """The input tokens, and how the engine chooses the next ones."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits: (token, amount)
    draft: tuple[int, ...] = ()  # to be verified; the engine returns at most one more token
    draft_logits: Logits | None = None  # [n, V]  what the draft was drawn from; None: certain
    wants_logits: bool = False
    log_probs: bool = False
    wants_acceptance: bool = False  # tokens that the engine itself drafted, if it reports them
    speculates: bool = True  # False: an engine of lookahead decoding decodes plainly
    guide: Guide | None = None  # what the answer to this call must match, from its first token on

    def __post_init__(self) -> None:
        """Check the preconditions of the engines."""
        assert self.max_tokens >= 1 and self.prompt


@dataclass(frozen=True, eq=False)
class Reply:
    """New tokens, without the prompt."""

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
