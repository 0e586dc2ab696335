"""The seam of decoding: what runners and proposers promise, and the records they exchange.

A *sequence* is the prompt and every token committed so far. Its last token is the *root*. A draft
is a tree of draft tokens under it, and one call of the target scores the root and the whole tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Logits = NDArray[np.float32]

Role = Literal["target", "draft"]

ROOT = -1


@dataclass(frozen=True, eq=False)
class Draft:
    """Guessed tokens, a tree under the last committed token."""

    tokens: Ints  # [n]     parents come before children
    parents: Ints  # [n]    ROOT (-1): directly under the last committed token
    probs: Floats | None = None  # [n, V]  what each was drawn from; None: chosen with certainty
    scratch: int = 0  # the last k nodes are scored but may never be accepted

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Count the tokens of the longest path that may be accepted."""
        below = {ROOT: 0}
        for node, parent in enumerate(self.parents[: len(self) - self.scratch].tolist()):
            below[node] = below[parent] + 1
        return max(below.values())


def chain(tokens: Sequence[int] | Ints, probs: Floats | None = None) -> Draft:
    """Return the draft in which every token follows the one before."""
    ids = np.asarray(tokens, np.int64)
    return Draft(ids, np.arange(-1, len(ids) - 1, dtype=np.int64), probs)


EMPTY = chain([])


@dataclass(frozen=True, eq=False)
class Scores:
    """The target's view of the root (row 0) and of draft node i (row i + 1)."""

    logits: Logits  # [1 + n, V]
    hidden: Logits | None = None  # [1 + n, D]  last hidden state, after the final norm


@dataclass(frozen=True, eq=False)
class Guesses:
    """What K heads predict from one hidden state: head k the token k + 2 places ahead."""

    tokens: Ints  # [K, W]  likeliest first
    probs: Floats  # [K, W]  of each prediction, by its head


@dataclass(frozen=True, eq=False)
class Extensions:
    """What a recurrent drafter predicts after each of B paths of draft tokens."""

    tokens: Ints  # [B, W]  likeliest first
    probs: Floats  # [B, W]  of each prediction
    states: Logits  # [B, D]  of the paths: the input for their children


@dataclass(frozen=True)
class Verdict:
    """What one step decided: the accepted nodes, root first, and the token that follows them."""

    path: tuple[int, ...]  # indices into the draft
    next_token: int

    @property
    def rows(self) -> tuple[int, ...]:
        """Return the rows of `Scores` that stand: the root's, and those of the path."""
        return (0, *(node + 1 for node in self.path))

    def emitted(self, draft: Draft) -> list[int]:
        """Return the tokens that the step commits: the accepted ones of `draft`, and the next."""
        return [*(int(draft.tokens[node]) for node in self.path), self.next_token]


@dataclass(frozen=True)
class Sampling:
    """How one request picks its tokens: the field names are those of upstream's tensors.

    Applied at every position with the history of that position: repetition, presence and frequency
    penalties (over prompt and output, as TensorRT-LLM counts), `min_tokens`, `bad_words`, then
    temperature, top_k, top_p.
    """

    temperature: float = 1.0
    top_k: int = 1  # 0: no limit; 1: greedy
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0  # no end token can be chosen before
    end_ids: tuple[int, ...] = ()  # any of them ends an answer and is its last token; (): none does
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether every token is the most likely one."""
        return self.top_k == 1 or self.temperature == 0


def length_to_end(tokens: Sequence[int], end_ids: Sequence[int]) -> int | None:
    """Count the tokens up to the first end token, which is counted; None if there is none."""
    return next((n for n, token in enumerate(tokens, 1) if token in end_ids), None)


class Runner(Protocol):
    """One sequence in a loaded engine."""

    vocab_size: int
    max_seq_len: int

    def start(self, prompt: Sequence[int]) -> None:
        """Forget the old sequence and take `prompt` (at least one token); runs nothing yet."""

    def prefill(self) -> bool:
        """Run one chunk of the prompt, and tell whether there was one to run.

        False: `score` runs the rest of the prompt in one call. Calling it is optional: `score`
        runs whatever is missing. The caller may do anything else between two chunks.
        """
        ...

    def score(self, draft: Draft) -> Scores:
        """Evaluate the root and the nodes of `draft`; commits nothing.

        The arrays may be views of the engine's memory: they are valid until the next call of any
        runner of that engine.
        """

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Append the accepted path and the next token to the sequence; drop every other row."""

    def follow(self, sequence: Sequence[int]) -> None:
        """Become `sequence`, keeping what was computed for the longest common prefix."""

    def guess(self, hidden: Logits) -> Guesses:
        """Ask the engine's heads what follows a hidden state [D] of `score`.

        Raises Unsupported if the engine was built without heads.
        """
        ...

    def extend(self, hidden: Logits, states: Logits, tokens: Ints) -> Extensions:
        """Predict what follows B paths of draft tokens after a hidden state [D].

        A path is known by its last token, `tokens` [B], and by the state `states` [B, D] that came
        with its parent's guesses: zeros for the first, whose token is the one that follows
        `hidden`. Raises Unsupported if the engine was built without a drafter.
        """
        ...


class LoadedEngine(Protocol):
    """An engine in memory; its runners share the weights and must be used from one thread."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        ...

    @property
    def max_seq_len(self) -> int:
        """Most tokens in one sequence, prompt and output."""
        ...

    @property
    def pads_steps(self) -> bool:
        """Whether a speculating sequence always costs the full `step_width`."""
        ...

    def runner(self, step_width: int = 0) -> Runner:
        """Return a runner of its own KV cache, for steps of up to `step_width` rows."""
        ...

    def trim(self) -> None:
        """Give back memory that only loading and the first steps needed."""


class Proposer(Protocol):
    """A source of drafts: draft model, prompt lookup, ...; described by facts, never by name."""

    draft_nodes: int  # at most this many tokens are scored in addition to the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Begin a new sequence; `sampling` is what the target's tokens will be picked with."""

    def propose(self, limit: int) -> Draft:
        """Guess at most `limit` tokens deep, scratch nodes apart; nothing if it is not above 0.

        An empty draft is always allowed. Guesses must not depend on the verifier's coming draws.
        """
        ...

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Learn what the last step committed; its draft may be empty or of another proposer."""
