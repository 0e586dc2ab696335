"""The messages between the text models and the engine's process, as lines of JSON.

A connection carries many requests; each has a number that the text model chooses. The text model
sends `{"submit":number,...}` and `{"cancel":number}`. The engine sends one line per round: a list
with an entry for every step of every request, `[number,tokens,log_probs,finish,counters]`, or for
an error, `[number,code,sentence]`. An error with the number 0 ends the whole connection.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specpipe.core.contracts import Sampling
from specpipe.core.guide import Guide, guide_of
from specpipe.runtime.failures import EngineError
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
    tops: int = 0  # likeliest tokens at every position; not for the models at the other end
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits: (token, amount)
    use_draft_logits: bool = False
    context_logits: bool = False  # what the target expects after every token of the prompt
    cache_salt: str = ""  # only requests of the same salt share KV blocks of their prompts
    guide: Guide | None = None  # what the answer must match; None: anything


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

    def row(self) -> tuple[int, ...]:
        """Return the values in the order of the fields."""
        return tuple(vars(self).values())

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
class EngineProgress:
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
CONNECTION = 0  # the number of errors that concern a whole connection

News = tuple[object, ...]  # an entry of the engine's lines
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def step_news(number: int, step: Step, counters: Counters) -> News:
    """Return the entry of a step."""
    return number, step.tokens, step.log_probs, step.finish, counters.row()


def error_news(number: int, code: str, sentence: str) -> News:
    """Return the entry of an error."""
    return number, code, sentence


def dump_news(news: Sequence[News]) -> bytes:
    """Return entries as one line."""
    return _line(news)


def load_news(line: bytes) -> Iterator[tuple[int, EngineProgress | EngineError]]:
    """Yield the entries of a line that `dump_news` made, each with the number of its request."""
    for number, *entry in json.loads(line):
        if len(entry) == 2:
            yield number, EngineError(*entry)
        else:
            tokens, log_probs, finish, counters = entry
            yield (
                number,
                EngineProgress(tuple(tokens), tuple(log_probs), finish, Counters(*counters)),
            )


def dump_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Return a heartbeat as one line."""
    return _line(asdict(heartbeat))


def load_heartbeat(line: bytes) -> Heartbeat:
    """Return the heartbeat of a line; raises the EngineError that it may be."""
    values = json.loads(line)
    if isinstance(values, list):
        raise EngineError(*values[0][1:])
    return Heartbeat(**values)


def dump_submit(number: int, request: Request) -> bytes:
    """Return the line that submits a request."""
    guide = None if request.guide is None else vars(request.guide)
    parts = {"sampling": vars(request.sampling), "limits": vars(request.limits), "guide": guide}
    return _line({"submit": number, **vars(request), **parts})


def dump_cancel(number: int) -> bytes:
    """Return the line that cancels a request."""
    return _line({"cancel": number})


def load_call(line: bytes) -> dict[str, Any]:
    """Return what a text model sends; `load_request` reads the request of a submission."""
    values: dict[str, Any] = json.loads(line)
    return values


def load_request(values: dict[str, Any]) -> Request:
    """Return the request of a line that `dump_submit` made."""
    sampling, limits, guide = values["sampling"], values["limits"], values["guide"]
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
        cache_salt=values["cache_salt"],
        guide=None if guide is None else guide_of(guide["kind"], guide["text"]),
    )


def _line(values: object) -> bytes:
    return _encode(values).encode() + b"\n"


def _words(lists: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(word) for word in lists)
