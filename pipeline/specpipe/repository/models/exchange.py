"""What the text models and the engine's process tell each other, and its JSON. No Triton here."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from specpipe.contracts import Sampling
from specpipe.repository.models.failures import EngineError
from specpipe.speculate.decode import Finish, Limits, Step

PROBE_ID = "specpipe-probe"  # of the requests by which `serve` finds out whether a server moves


@dataclass(frozen=True)
class Request:
    """One request for tokens, already checked."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    limits: Limits
    num_draft_tokens: int | None = None
    log_probs: bool = False
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits: (token, amount)
    use_draft_logits: bool = False
    context_logits: bool = False  # what the target expects after every token of the prompt


@dataclass
class Counters:
    """What a request has used so far; times are of `time.monotonic_ns`."""

    arrival_ns: int
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    steps: int = 0
    output_tokens: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0

    def add(self, step: Step) -> None:
        """Count one step."""
        self.last_token_ns = time.monotonic_ns()
        self.first_token_ns = self.first_token_ns or self.last_token_ns
        self.steps += 1
        self.output_tokens += len(step.tokens)
        self.draft_tokens += step.drafted
        self.accepted_draft_tokens += step.accepted

    def cut(self, dropped: int, kept: int, accepted_before: int) -> "Counters":
        """Return what was used if the last step's first `kept` tokens were emitted only.

        `dropped` were not; an accepted draft token that is not emitted does not count, and
        `accepted_before` were accepted in earlier steps. Draft tokens come first in a step.
        """
        accepted = self.accepted_draft_tokens - accepted_before
        return replace(
            self,
            output_tokens=self.output_tokens - dropped,
            accepted_draft_tokens=accepted_before + min(kept, accepted),
        )


@dataclass(frozen=True)
class Progress:
    """One step of a request: its tokens, and what the request has used so far."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: Finish | None
    counters: Counters


@dataclass(frozen=True)
class Heartbeat:
    """What the thread that owns the engine answers to whoever wants to know whether it moves."""

    rounds: int  # since the start; a round gives every sequence its turn
    active: int  # sequences in slots
    waiting: int  # requests in the queue


PING = b'{"ping":true}\n'  # asks for a Heartbeat


def dump(message: Request | Progress | EngineError | Heartbeat) -> bytes:
    """Return a message as one line of JSON."""
    if isinstance(message, EngineError):
        values: Mapping[str, Any] = {"code": message.code, "error": str(message)}
    else:
        values = asdict(message)
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def load_request(line: bytes) -> Request:
    """Return the request of a line that `dump` made."""
    values = json.loads(line)
    sampling, limits = values["sampling"], values["limits"]
    return Request(
        request_id=values["request_id"],
        prompt=tuple(values["prompt"]),
        sampling=Sampling(
            **{
                **sampling,
                "end_ids": tuple(sampling["end_ids"]),
                "bad_words": _words(sampling["bad_words"]),
            }
        ),
        limits=Limits(limits["max_tokens"], _words(limits["stop_words"])),
        num_draft_tokens=values["num_draft_tokens"],
        log_probs=values["log_probs"],
        bias=tuple((token, amount) for token, amount in values["bias"]),
        use_draft_logits=values["use_draft_logits"],
    )


def load_progress(line: bytes) -> Progress:
    """Return the step of a line that `dump` made; raises the EngineError that it may be."""
    values = json.loads(line)
    if "error" in values:
        raise EngineError(values["code"], values["error"])
    return Progress(
        tokens=tuple(values["tokens"]),
        log_probs=tuple(values["log_probs"]),
        finish=values["finish"],
        counters=Counters(**values["counters"]),
    )


def load_heartbeat(line: bytes) -> Heartbeat:
    """Return the heartbeat of a line that `dump` made; raises the EngineError that it may be."""
    values = json.loads(line)
    if "error" in values:
        raise EngineError(values["code"], values["error"])
    return Heartbeat(**values)


def _words(lists: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(word) for word in lists)
