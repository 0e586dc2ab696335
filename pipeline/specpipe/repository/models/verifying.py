"""One call of `tensorrt_llm`, answered by a runner of ours. Knows nothing of Triton."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from specpipe.contracts import (
    EMPTY,
    Draft,
    Extensions,
    Floats,
    Guesses,
    Ints,
    Logits,
    Proposer,
    Runner,
    Sampling,
    Scores,
    Verdict,
    chain,
)
from specpipe.errors import ConfigError
from specpipe.repository.models.calls import Reply
from specpipe.repository.models.context import ContextLogits
from specpipe.speculate.context import read_context
from specpipe.speculate.decode import Limits, decode
from specpipe.speculate.history import History
from specpipe.speculate.sampling import Adjustment, distribution


@dataclass(frozen=True, eq=False)
class Question:
    """A call as it arrives in tensors, checked."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop_words: tuple[tuple[int, ...], ...] = ()
    draft: tuple[int, ...] = ()
    draft_logits: Logits | None = None  # [n, V]
    bias: Logits | None = None  # [V]
    log_probs: bool = False


def answer(question: Question, prefixes: "Prefixes") -> Reply:
    """Return the answer to one call: all of it, or one step if there is a draft to verify.

    Raises ConfigError if the logits do not belong to the draft.
    """
    runner = prefixes.best(question.prompt)
    runner.bias = question.bias
    proposer = _Given(question, runner.vocab_size)
    limits = Limits(question.max_tokens, question.stop_words)
    steps = decode(
        runner, proposer, question.prompt, question.sampling, limits, log_probs=question.log_probs
    )
    tokens: list[int] = []
    scores: list[float] = []
    logits: list[Logits] = []
    for step in itertools.islice(steps, 1 if question.draft else None):
        tokens += step.tokens
        scores += step.log_probs
        logits.append(runner.seen[: len(step.tokens)])
    return Reply(tuple(tokens), tuple(scores), np.concatenate(logits))


def read_prompt(prompt: Sequence[int], prefixes: "Prefixes") -> ContextLogits:
    """Return what the engine expects after every token of a prompt.

    Raises ConfigError if that is too large to be sent.
    """
    runner = prefixes.best(prompt)
    runner.bias = None
    found = ContextLogits.of(len(prompt), runner.vocab_size)
    for rows in read_context(runner, prompt):
        found.add(rows)
    return found


class Prefixes:
    """The sequences that an engine has room for; a call continues the one that fits best."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners = [_Keeping(runner) for runner in runners]

    def best(self, prompt: Sequence[int]) -> "_Keeping":
        """Return the runner that shares the longest prefix; of equals, that least recently used."""
        chosen = max(self._runners, key=lambda runner: _common(runner.tokens, prompt))
        self._runners.remove(chosen)
        self._runners.append(chosen)
        return chosen


def _common(known: Sequence[int], prompt: Sequence[int]) -> int:
    pairs = zip(known, prompt, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass
class _Keeping:
    """A runner that keeps what it can of its last sequence, adds a bias, and shows its logits."""

    runner: Runner
    tokens: list[int] = field(default_factory=list)
    bias: Logits | None = None
    seen: Logits = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        self.vocab_size = self.runner.vocab_size
        self.max_seq_len = self.runner.max_seq_len

    def start(self, prompt: Sequence[int]) -> None:
        self.follow(prompt)

    def prefill(self) -> bool:
        return self.runner.prefill()

    def follow(self, sequence: Sequence[int]) -> None:
        self.tokens = list(sequence)
        self.runner.follow(sequence)

    def score(self, draft: Draft) -> Scores:
        scores = self.runner.score(draft)
        logits = scores.logits if self.bias is None else scores.logits + self.bias
        self.seen = np.array(logits, np.float32)  # the engine's memory is used again
        return replace(scores, logits=self.seen)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        self.runner.commit(draft, verdict)
        self.tokens += verdict.emitted(draft)

    def guess(self, hidden: Logits) -> Guesses:
        return self.runner.guess(hidden)

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        return self.runner.extend(hidden, states, tokens)


class _Given(Proposer):
    """Proposes what came with the call, once."""

    def __init__(self, question: Question, vocab_size: int) -> None:
        self.draft_nodes = len(question.draft)
        self._draft = chain(question.draft, _laws(question, vocab_size))

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        pass

    def propose(self, limit: int) -> Draft:
        draft, self._draft = self._draft, EMPTY
        probs = None if draft.probs is None else draft.probs[:limit]
        return chain(draft.tokens[:limit], probs)

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        pass


def _laws(question: Question, vocab_size: int) -> Floats | None:
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
