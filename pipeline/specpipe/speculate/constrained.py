"""A grammar along the draft tree: every position is masked with the history of that position.

The matcher of the committed tokens is never rolled back: a walk down the tree goes on copies. End
tokens are never fed. So a mask depends on nothing but the tokens before it, and constrained output
equals that of plain decoding under the same grammar.

A *path* is a sequence of tokens that would follow the committed ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from specpipe.core.contracts import (
    ROOT,
    Answer,
    Asking,
    Draft,
    Logits,
    Mask,
    Score,
    Scores,
    T,
)
from specpipe.core.errors import ConfigError

_LOWERED = np.float32(1e6)  # below the others: unlikely, and finite for every penalty and ban


class Matcher(Protocol):
    """A grammar after some tokens of an answer."""

    def copy(self) -> "Matcher":
        """Return another matcher in the same state."""
        ...

    def feed(self, token: int) -> bool:
        """Move on by a token that is no end token; if false, it is not permitted here.

        After that this matcher is of no use any more.
        """
        ...

    def mask(self) -> Mask:
        """Return the tokens [V] that may follow as text: no end token of the model is one."""
        ...

    def accepts(self) -> bool:
        """Tell whether the answer may end here."""
        ...


@dataclass(frozen=True, eq=False)
class _Place:
    """The grammar after some path."""

    matcher: Matcher

    @cached_property
    def texts(self) -> Mask:
        """The tokens [V] that may follow, end tokens apart."""
        return self.matcher.mask()

    @cached_property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return self.matcher.accepts()


class Constraint:
    """The grammar of one sequence, at its last committed token."""

    def __init__(self, matcher: Matcher, end_ids: Sequence[int]) -> None:
        """Begin at the start of `matcher`; the tokens `end_ids` end an answer, and are no text."""
        self._ends = np.array(sorted(set(end_ids)), np.int64)
        self._end_ids = frozenset(end_ids)
        self._places: dict[tuple[int, ...], _Place | None] = {(): _Place(matcher)}

    def mask(self, path: Sequence[int]) -> Mask | None:
        """Return the tokens [V] that may follow `path`; None if the answer ends before its end.

        None also for a path that is not permitted. No such position is part of an answer.
        """
        place = self._place(tuple(path))
        if place is None or (path and self.is_complete(path)):
            return None
        mask = place.texts.copy()
        mask[self._ends] = place.accepts
        return mask

    def permits(self, path: Sequence[int], token: int) -> bool:
        """Tell whether `token` may follow `path`."""
        place = self._place(tuple(path))
        if place is None:
            return False
        if token in self._end_ids:
            return place.accepts
        return self._place((*path, token)) is not None

    def is_complete(self, path: Sequence[int]) -> bool:
        """Tell whether nothing but an end may follow `path`."""
        place = self._place(tuple(path))
        if place is None or not place.accepts:
            return False
        texts = place.texts.copy()
        texts[self._ends] = False
        return not texts.any()

    def commit(self, tokens: Sequence[int]) -> None:
        """Move on by tokens that were emitted; raises ConfigError if the grammar forbids them."""
        place = self._place(tuple(tokens))
        if place is None:
            raise ConfigError(f"the grammar does not permit the tokens {list(tokens)}")
        self._places = {(): place}

    def _place(self, path: tuple[int, ...]) -> _Place | None:
        if path not in self._places:
            before = self._place(path[:-1])
            self._places[path] = None if before is None else self._after(before, path[-1])
        return self._places[path]

    def _after(self, place: _Place, token: int) -> _Place | None:
        if token in self._end_ids:
            return None
        matcher = place.matcher.copy()
        return _Place(matcher) if matcher.feed(token) else None


def permitted(logits: Logits, mask: Mask | None) -> Logits:
    """Return `logits` [V] without the tokens outside the mask; None permits all.

    Raises ConfigError if no token is left.
    """
    if mask is None:
        return logits
    left = np.where(mask, logits, np.float32(-np.inf))
    if left.max() == -np.inf:
        raise ConfigError(
            "the grammar permits no token here that bad_words and min_tokens do not ban"
        )
    return left


def permitted_part(draft: Draft, constraint: Constraint) -> Draft:
    """Return a chosen draft without the nodes that the grammar forbids: they cost rows.

    A draft that was drawn stays as it is. If its length depended on the drawn tokens, so would
    what is scored of it, and the distribution of the output would change. A draft with scratch
    nodes stays as it is, too.
    """
    if draft.probs is not None or draft.scratch or not len(draft):
        return draft
    paths: dict[int, tuple[int, ...]] = {ROOT: ()}
    for node, (token, parent) in enumerate(zip(draft.tokens.tolist(), draft.parents.tolist(),
                                               strict=True)):  # fmt: skip
        if parent in paths and constraint.permits(paths[parent], token):
            paths[node] = (*paths[parent], token)
    nodes = [node for node in paths if node != ROOT]
    return draft if len(nodes) == len(draft) else draft.only(np.array(nodes, np.int64))


def guided(asking: Asking[T], constraint: Constraint, length: int) -> Asking[T]:
    """Pass the asks of a proposer on, and lower the logits of a draft model by the grammar.

    `length` is that of the committed sequence. A draft model may draft whatever it likes: this
    makes it draft tokens that can be accepted.
    """
    answer: Answer | None = None
    while True:
        try:
            ask = asking.send(answer)  # type: ignore[arg-type]
        except StopIteration as stop:
            value: T = stop.value
            return value
        answer = yield ask
        if isinstance(ask, Score) and ask.role == "draft" and isinstance(answer, Scores):
            answer = _lowered(ask, answer, constraint, length)


def _lowered(ask: Score, scores: Scores, constraint: Constraint, length: int) -> Scores:
    begun = tuple(ask.tokens[length:])
    paths = [begun]
    for token, parent in zip(ask.draft.tokens.tolist(), ask.draft.parents.tolist(), strict=True):
        paths.append((*paths[parent + 1], token))
    rows = [_lower(row, constraint.mask(path)) for row, path in zip(scores.logits, paths,
                                                                    strict=True)]  # fmt: skip
    return replace(scores, logits=np.stack(rows))


def _lower(logits: Logits, mask: Mask | None) -> Logits:
    return logits if mask is None else np.where(mask, logits, logits - _LOWERED)
