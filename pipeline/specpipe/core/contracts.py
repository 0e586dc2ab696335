"""The interface of decoding: what algorithms ask, what they are answered, and proposers of drafts.

A *sequence* is the prompt and every token committed so far. Its last token is the *root*. A draft
is a tree of draft tokens under it, and one call of the target scores the root and the whole tree.

The algorithms are generators. They yield an `Ask` and are resumed with its answer, so they hold no
engine. A driver (`runtime.batcher`) collects the asks of many sequences and answers them with one
call per engine (`core.engines`).
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Logits = NDArray[np.float32]
Mask = NDArray[np.bool_]

Role = Literal["target", "draft"]

ROOT = -1


@dataclass(frozen=True, eq=False)
class Draft:
    """Guessed tokens, a tree under the last committed token."""

    tokens: Ints  # [n]     parents come before children
    parents: Ints  # [n]    ROOT (-1): directly under the last committed token
    probs: Floats | None = None  # [n, V]  what each was drawn from; None: chosen with certainty
    scratch: int = 0  # the last k nodes are scored but may never be accepted
    chances: Floats | None = None  # [n]  estimated probability of acceptance; None: not known

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Count the tokens of the longest path that may be accepted."""
        below = {ROOT: 0}
        for node, parent in enumerate(self.parents[: len(self) - self.scratch].tolist()):
            below[node] = below[parent] + 1
        return max(below.values())

    def main_path(self) -> Ints:
        """Return the nodes of the path of first children, scratch nodes apart."""
        path, at = list[int](), ROOT
        eligible = self.parents[: len(self) - self.scratch]
        while len(found := np.flatnonzero(eligible == at)):
            at = int(found[0])
            path.append(at)
        return np.array(path, np.int64)

    def only(self, nodes: Ints) -> "Draft":
        """Return the draft of some `nodes`: ascending indices, none of them scratch.

        The parent of each must be among them.
        """
        kept: slice | Ints = nodes
        if len(nodes) and nodes[-1] < len(nodes):
            kept = slice(len(nodes))  # the first ones, whose parents keep their places
            parents = self.parents[kept]
        else:
            place = np.full(len(self) + 1, ROOT, np.int64)  # the last entry is that of ROOT
            place[nodes] = np.arange(len(nodes))
            parents = place[self.parents[nodes]]
        return Draft(
            self.tokens[kept],
            parents,
            None if self.probs is None else self.probs[kept],
            chances=None if self.chances is None else self.chances[kept],
        )


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
    kept: Ints | None = None  # the nodes of the draft that were scored; None: all


@dataclass(frozen=True, eq=False)
class Guesses:
    """What K heads predict from one hidden state: head k the token k + 2 places ahead."""

    tokens: Ints  # [K, W]  likeliest first
    probs: Floats  # [K, W]  of each prediction, by its head


@dataclass(frozen=True, eq=False)
class Extensions:
    """What a drafter with a state predicts after each of B paths of draft tokens."""

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


@dataclass(frozen=True, eq=False)
class Score:
    """Ask for the logits of the root of `tokens` and of the nodes of `draft`.

    `tokens` is the whole sequence; the engine finds out which of its rows are in the cache. Unless
    `whole` is set, the driver may score fewer nodes of the target's draft (`Scores.kept`).
    """

    role: Role
    tokens: Sequence[int]  # at least one
    draft: Draft = EMPTY
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Guess:
    """Ask an engine's Medusa heads what follows a hidden state of `Scores`."""

    role: Role
    hidden: Logits  # [D]


@dataclass(frozen=True, eq=False)
class Extend:
    """Ask an engine's recurrent drafter what follows B paths of draft tokens.

    A path is known by its last token and by the state that came with its parent's guesses: zeros
    for the first, whose token is the one that follows `hidden`.
    """

    role: Role
    hidden: Logits  # [D]
    states: Logits  # [B, D]
    tokens: Ints  # [B]


@dataclass(frozen=True, eq=False)
class Predict:
    """Ask an engine's one-layer drafter what follows the root of `tokens` or nodes of `draft`.

    `tokens` is the whole sequence. The drafter reads `draft` itself, with the state of the parent
    of each node. An engine that cannot draft now answers with no predictions.
    """

    role: Role
    tokens: Sequence[int]  # at least two
    draft: Draft
    states: Sequence[Logits]  # n x [D]  that were predicted with the parents of the nodes
    wanted: Ints  # [B]  the nodes to predict after; ROOT: the root


@dataclass(frozen=True)
class Allowance:
    """Ask how deep the next draft may be, at most `limit`; 0: drafting does not pay now."""

    limit: int


Ask = Score | Guess | Extend | Predict | Allowance
Answer = Scores | Guesses | Extensions | int
T = TypeVar("T")
Asking = Generator[Ask, Answer, T]  # runs until it asks, is answered, and returns a T in the end


def score(
    role: Role, tokens: Sequence[int], draft: Draft = EMPTY, *, whole: bool = False
) -> Asking[Scores]:
    """Ask for `Scores`; see `Score`."""
    answer = yield Score(role, tokens, draft, whole)
    assert isinstance(answer, Scores)
    return answer


def guess(role: Role, hidden: Logits) -> Asking[Guesses]:
    """Ask for `Guesses`; see `Guess`."""
    answer = yield Guess(role, hidden)
    assert isinstance(answer, Guesses)
    return answer


def extend(role: Role, hidden: Logits, states: Logits, tokens: Ints) -> Asking[Extensions]:
    """Ask for `Extensions`; see `Extend`."""
    answer = yield Extend(role, hidden, states, tokens)
    assert isinstance(answer, Extensions)
    return answer


def predict(ask: Predict) -> Asking[Extensions]:
    """Ask for `Extensions`; see `Predict`."""
    answer = yield ask
    assert isinstance(answer, Extensions)
    return answer


def allowance(limit: int) -> Asking[int]:
    """Ask how deep the next draft may be; see `Allowance`."""
    answer = yield Allowance(limit)
    assert isinstance(answer, int)
    return answer


def without_asking(value: T) -> Asking[T]:
    """Return `value` at once, where a generator is expected."""
    yield from ()  # makes this a generator
    return value


class Proposer(Protocol):
    """A source of drafts: draft model, prompt lookup, ...; described by facts, never by name."""

    draft_nodes: int  # at most this many tokens are scored in addition to the root

    def start(self, prompt: Sequence[int], sampling: Sampling) -> None:
        """Begin a new sequence; `sampling` is what the target's tokens will be picked with."""

    def propose(self, limit: int) -> Asking[Draft]:
        """Draft at most `limit` tokens deep, scratch nodes apart; nothing if it is not above 0.

        An empty draft is always allowed. Drafts must not depend on the verifier's coming draws.
        """
        ...

    def observe(self, draft: Draft, scores: Scores, verdict: Verdict) -> None:
        """Learn what the last step committed; its draft may be empty or of another proposer."""
