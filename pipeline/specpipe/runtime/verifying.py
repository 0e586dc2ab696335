"""Answers one call of `tensorrt_llm` with an engine of specpipe."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from specpipe.core.contracts import (
    EMPTY,
    Allowance,
    Answer,
    Asking,
    Draft,
    Floats,
    Logits,
    Sampling,
    Score,
    Scores,
    Verdict,
    chain,
    without_asking,
)
from specpipe.core.engines import LoadedEngine
from specpipe.core.errors import ConfigError
from specpipe.runtime.calls import Reply
from specpipe.runtime.context import ContextCollector
from specpipe.runtime.lane import Lane
from specpipe.speculate import decode
from specpipe.speculate.decode import Decoding, Limits, Step
from specpipe.speculate.history import History
from specpipe.speculate.sampling import Adjustment, distribution

CHUNK = 64  # prompt tokens per step


@dataclass(frozen=True, eq=False)
class CheckedCall:
    """A call as it arrives in tensors, checked."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_words: tuple[tuple[int, ...], ...] = ()
    draft: tuple[int, ...] = ()
    draft_logits: Logits | None = None  # [n, V]
    bias: Logits | None = None  # [V]
    log_probs: bool = False


def answer(question: CheckedCall, prefixes: "Prefixes") -> Reply:
    """Return the answer to one call: all of it, or one step if there is a draft to verify.

    Raises ConfigError if the logits do not belong to the draft.
    """
    proposer = _Given(question, prefixes.engine.facts.vocab_size)
    decoding = decode.decode(
        proposer,
        question.prompt,
        question.sampling,
        Limits(question.max_tokens, question.stop_words),
        log_probs=question.log_probs,
    )
    tokens: list[int] = []
    scores: list[float] = []
    logits: list[Logits] = []
    steps = prefixes.decode(question.prompt, decoding, question.bias)
    for step, seen in itertools.islice(steps, 1 if question.draft else None):
        assert isinstance(step, Step)
        tokens += step.tokens
        scores += step.log_probs
        logits.append(seen[: len(step.tokens)])
    return Reply(tuple(tokens), tuple(scores), np.concatenate(logits))


def read_prompt(prompt: Sequence[int], prefixes: "Prefixes") -> ContextCollector:
    """Return what the engine expects after every token of a prompt.

    Raises ConfigError if that is too large to be sent.
    """
    found = ContextCollector.of(len(prompt), prefixes.engine.facts.vocab_size)
    for event, _ in prefixes.decode(prompt, decode.read_context(prompt)):
        assert isinstance(event, decode.ContextLogits)
        found.add(event.logits)
    return found


@dataclass
class Prefixes:
    """The last sequences of an engine; a call continues the one that fits best."""

    engine: LoadedEngine
    most: int  # sequences
    _known: list[tuple[Sequence[int], Lane]] = field(default_factory=list)  # the latest last

    def decode(
        self, prompt: Sequence[int], decoding: Decoding, bias: Logits | None = None
    ) -> Iterator[tuple[Step | decode.ContextLogits, Logits]]:
        """Yield the events of a decoding, each with the logits it was made from.

        `bias` [V] is added to all logits.
        """
        lane = self._lane(prompt)
        answer: Answer | None = None
        seen: Logits = np.zeros((0, 0), np.float32)
        while True:
            try:
                said = decoding.send(answer)
            except StopIteration:
                return
            answer = None
            if isinstance(said, Allowance):
                answer = said.limit
            elif isinstance(said, Score):
                scores = self._score(lane, said)
                seen = scores.logits if bias is None else scores.logits + bias
                answer = replace(scores, logits=seen)
            else:
                assert isinstance(said, Step | decode.ContextLogits)
                yield said, seen

    def _score(self, lane: Lane, ask: Score) -> Scores:
        lane.follow(ask.tokens)
        while len(lane.pending) > CHUNK:
            chunk = lane.chunk(CHUNK)
            self.engine.step([chunk])
            lane.done(chunk)
        item = lane.whole(ask.draft)
        (scores,) = self.engine.step([item])
        lane.done(item)
        return scores

    def _lane(self, prompt: Sequence[int]) -> Lane:
        """Return the lane with the longest common prefix; of equals, the least recently used."""
        if len(self._known) < self.most:
            self._known.insert(0, ((), Lane(self.engine)))
        best = max(self._known, key=lambda known: _common(known[0], prompt))
        self._known.remove(best)
        self._known.append((tuple(prompt), best[1]))
        return best[1]


def _common(known: Sequence[int], prompt: Sequence[int]) -> int:
    pairs = zip(known, prompt, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Given:
    """Proposes the draft of the call, once."""

    def __init__(self, question: CheckedCall, vocab_size: int) -> None:
        self.draft_nodes = len(question.draft)
        self._draft = chain(question.draft, _distributions(question, vocab_size))

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        pass

    def propose(self, limit: int) -> Asking[Draft]:
        draft, self._draft = self._draft, EMPTY
        probs = None if draft.probs is None else draft.probs[:limit]
        return without_asking(chain(draft.tokens[:limit], probs))

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        pass


def _distributions(question: CheckedCall, vocab_size: int) -> Floats | None:
    """Return what each guess was drawn from, by the options of the request."""
    logits, sampling = question.draft_logits, question.sampling
    if logits is None or not question.draft or sampling.greedy:
        return None
    if logits.shape != (len(question.draft), vocab_size):
        raise ConfigError(
            f"draft_logits is {list(logits.shape)}: must be [{len(question.draft)}, {vocab_size}], "
            "a row for every draft token"
        )
    adjustment, history = Adjustment(sampling), History(question.prompt)
    rows = []
    for place, row in enumerate(logits):
        before = history + question.draft[:place]
        rows.append(distribution(adjustment(row, before, place), sampling))
    return np.stack(rows)
