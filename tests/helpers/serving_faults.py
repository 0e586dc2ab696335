"""Faults of serving, each planted in a toy served model."""

import itertools
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from specpipe.core.contracts import Floats
from specpipe.serve.client import Acceptance, Options
from tests.helpers.served_model import DRAFTS, END, ServedModel, draw, toy_logits


class WrongTemplate(ServedModel):
    """The server puts another text before the prompt than the model was trained with."""

    def encode(self, text: str) -> list[int]:
        return super().encode(f"user {text}")


class DroppedStopId(ServedModel):
    """The end token does not end an answer."""

    def ends(self, token: int) -> bool:
        return False


@dataclass
class OneInFiveHundred(ServedModel):
    """Speculation changes one token in 500."""

    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def choose(self, row: Floats, options: Options, place: int) -> int:
        token = super().choose(row, options, place)
        if not self.drafts(options):
            return token
        return (token + 7) % 20 + 2 if next(self.numbers) % 500 == 0 else token


@dataclass
class MixedRows(ServedModel):
    """With several requests in flight, one gets rows of another."""

    flying: list[tuple[int, ...]] = field(default_factory=list)
    several: threading.Condition = field(default_factory=threading.Condition)

    def steps(self, prompt: Sequence[int], options: Options) -> Iterator[tuple[int, ...]]:
        with self.several:
            self.flying.append(tuple(prompt))
            self.several.notify_all()
            self.several.wait_for(lambda: len(self.flying) > 1, timeout=0.01)
        yield from super().steps(prompt, options)
        with self.several:
            self.flying.remove(tuple(prompt))

    def logits(self, context: Sequence[int], options: Options) -> Floats:
        others = [p for p in self.flying if p != tuple(context[: len(p)])]
        return toy_logits([*others[0], *context[-3:]] if others else context)


@dataclass
class WrongPrefix(ServedModel):
    """A prompt that begins like an earlier one finds that one's KV cache, all of it."""

    cached: dict[tuple[int, ...], Sequence[int]] = field(default_factory=dict)

    def context(self, prompt: Sequence[int], options: Options) -> Sequence[int]:
        if options.cache_salt is not None:
            return prompt
        return self.cached.setdefault(tuple(prompt[:8]), prompt)


class WrongNormalization(ServedModel):
    """The server's tokenizer writes small letters."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.lower())


class NoTemperature(ServedModel):
    """Every request is greedy."""

    def choose(self, row: Floats, options: Options, place: int) -> int:
        return int(row.argmax())


class NoSeed(ServedModel):
    """A seed is ignored."""

    def choose(self, row: Floats, options: Options, place: int) -> int:
        return draw(row, Options(temperature=options.temperature, top_p=options.top_p,
                                 seed=secrets.randbits(32)), place)  # fmt: skip


class Sharper(ServedModel):
    """Speculation accepts draft tokens that sampling would have rejected."""

    def choose(self, row: Floats, options: Options, place: int) -> int:
        return super().choose(row * 3 if self.drafts(options) and place else row, options, place)


class LateStop(ServedModel):
    """The text after a stop word stays, to the end of the step."""

    def stop(self, text: str, words: Sequence[str]) -> int | None:
        found = super().stop(text, words)
        return None if found is None else len(text)


class Truncated(ServedModel):
    """Answers are two tokens too short."""

    def room(self, options: Options) -> int:
        return max(1, options.max_tokens - 2)


@dataclass
class StaleAcceptance(ServedModel):
    """The counters are those of the response before."""

    last: Acceptance = field(default_factory=lambda: Acceptance(DRAFTS, 0))

    def acceptance(self, found: Acceptance) -> Acceptance:
        if found.draft_tokens:
            found, self.last = self.last, found
        return found


class SecretSpeculation(ServedModel):
    """Plain requests speculate too, and report no draft tokens."""

    def steps(self, prompt: Sequence[int], options: Options) -> Iterator[tuple[int, ...]]:
        yield from super().steps(prompt, replace(options, num_draft_tokens=None))

    def acceptance(self, found: Acceptance) -> Acceptance:
        return Acceptance() if found.draft_tokens == 0 else found


class WrongWeights(ServedModel):
    """The engine was built from other weights."""

    def logits(self, context: Sequence[int], options: Options) -> Floats:
        row = toy_logits(context) * 0.7
        row[END] += 1
        return row


# The class of a fault, the scenario that catches it, and what fails: a pair of arms that differ,
# a check or a gate.
CAUGHT: dict[type[ServedModel], tuple[str, str]] = {
    WrongTemplate: ("answers", "speculative against reference"),
    DroppedStopId: ("answers", "speculative against reference"),
    WrongNormalization: ("answers", "speculative against reference"),
    Truncated: ("answers", "speculative against reference"),
    OneInFiveHundred: ("long", "speculative against plain"),
    MixedRows: ("concurrency", "plain against plain"),
    WrongPrefix: ("long", "speculative against plain"),
    NoTemperature: ("sampled", "sampled answers are drawn from the reference's"),
    NoSeed: ("sampled", "the same seed gives the same answer"),
    Sharper: ("sampled", "sampled answers have the same distribution with and without"),
    LateStop: ("stops", "an answer ends at its stop word"),
    StaleAcceptance: ("acceptance", "accepted draft tokens are those of the steps"),
    SecretSpeculation: ("acceptance", "plain decoding sends one token a step"),
    WrongWeights: ("accuracy", "kl_mean"),
}
