"""Grows a draft tree level by level from the predictions of heads or a recurrent drafter.

The value of a node is the product of the probabilities along its path (2401.10774, section 2.3.3).
A tree of n nodes therefore needs at most the n likeliest nodes of each level. Heads predict a whole
level at once, independent of the path. A recurrent drafter needs one evaluation per path, so it
extends only the likeliest paths, as in EAGLE-2 (2406.16858, section 4.1).
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from specpipe.core.contracts import (
    EMPTY,
    ROOT,
    Asking,
    Draft,
    Extensions,
    Guesses,
    Logits,
    Role,
    extend,
    without_asking,
)

Shares = Mapping[int, float]  # token -> probability that it follows
LEAST_WORTH = 1e-4  # least probability of a path that is worth a row
LEAST_CHANCE = 0.3  # least total probability of the nodes that a drafter is run on


@dataclass(eq=False, slots=True)  # not frozen: many are made, and that takes four times as long
class Node:
    """A possible token after those of its parents; the root is already chosen."""

    token: int
    parent: "Node | None" = None
    chance: float = 1.0
    depth: int = 0


class Predictor(Protocol):
    """Predicts the tokens that may follow the nodes of a level."""

    def after(self, level: Sequence[Node]) -> Asking[list[Shares]]:
        """Return the probabilities of the next tokens of each node; may be empty.

        `level` has the likeliest nodes first.
        """
        ...


class Silent:
    """Predicts nothing."""

    def after(self, level: Sequence[Node]) -> Asking[list[Shares]]:
        """Return nothing for every node."""
        return without_asking([{} for _ in level])


@dataclass(frozen=True)
class Heads:
    """Medusa heads, whose predictions depend only on the level."""

    guesses: Guesses

    def after(self, level: Sequence[Node]) -> Asking[list[Shares]]:
        """Return the same probabilities for every node."""
        depth, known = level[0].depth, self.guesses
        if depth >= len(known.tokens):
            return without_asking([{} for _ in level])
        row: Shares = dict(
            zip(known.tokens[depth].tolist(), known.probs[depth].tolist(), strict=True)
        )
        return without_asking([row for _ in level])


@dataclass(frozen=True)
class Recurrent:
    """A ReDrafter, run on the `beams` likeliest nodes of each of `levels` levels."""

    role: Role  # the engine with the drafter
    hidden: Logits  # [D]  hidden state that the root was predicted from
    beams: int
    levels: int
    least_chance: float = LEAST_CHANCE
    _states: dict[Node, Logits] = field(default_factory=dict)  # of the nodes that it was run on

    def after(self, level: Sequence[Node]) -> Asking[list[Shares]]:
        """Return predictions of the likeliest nodes; see `after_likeliest`."""
        known, least = self._states, self.least_chance
        return (
            yield from after_likeliest(
                level, known, self.beams, self.levels, self._ask, least=least
            )
        )

    def _ask(self, asked: Sequence[Node]) -> Asking[list[Shares]]:
        if not asked:
            return []
        start = np.zeros_like(self.hidden)
        states = [self._states[node.parent] if node.parent else start for node in asked]
        tokens = np.array([node.token for node in asked], np.int64)
        found = yield from extend(self.role, self.hidden, np.stack(states), tokens)
        self._states.update(zip(asked, found.states, strict=True))
        return as_shares(found)


def after_likeliest(
    level: Sequence[Node],
    known: Container[Node],
    beams: int,
    levels: int,
    ask: Callable[[Sequence[Node]], Asking[list[Shares]]],
    *,
    least: float = LEAST_CHANCE,
) -> Asking[list[Shares]]:
    """Return predictions of the nodes that are worth asking about; nothing for the others.

    `known` have a state. `ask` runs the drafter; it returns nothing if the drafter cannot run.
    There are none beyond `beams` nodes or `levels` levels, in levels whose nodes have a total
    probability below `least`, and no descendants of nodes that the drafter was not run on.
    """
    asked = _worth_asking(level, known, beams, levels, least)
    found = yield from ask(asked)
    answers: dict[Node, Shares] = dict(zip(asked, found or [{}] * len(asked), strict=True))
    return [answers.get(node, {}) for node in level]


def _worth_asking(
    level: Sequence[Node], known: Container[Node], beams: int, levels: int, least: float
) -> list[Node]:
    if level[0].depth >= levels:
        return []
    found = [node for node in level if node.parent is None or node.parent in known][:beams]
    return found if sum(node.chance for node in found) >= least else []


def as_shares(found: Extensions) -> list[Shares]:
    """Return the predictions after each path, by token."""
    rows = zip(found.tokens.tolist(), found.probs.tolist(), strict=True)
    return [dict(zip(*row, strict=True)) for row in rows]


def grow_levels(
    root: Node, follow: Callable[[Sequence[Node]], Asking[list[Shares]]], widest: int, deepest: int
) -> Asking[list[list[Node]]]:
    """Return the levels below `root`, each of at most `widest` nodes, likeliest first."""
    levels: list[list[Node]] = []
    level = [root]
    while len(levels) < deepest:
        found = yield from follow(level)
        possible = [
            (node.chance * share, token, node)
            for node, shares in zip(level, found, strict=True)
            for token, share in shares.items()
            if node.chance * share > LEAST_WORTH
        ]
        if not possible:
            break
        possible.sort(key=lambda made: -made[0])
        level = [
            Node(token, node, chance, node.depth + 1) for chance, token, node in possible[:widest]
        ]
        levels.append(level)
    return levels


def likeliest(levels: Sequence[Sequence[Node]], nodes: int) -> list[Node]:
    """Return the `nodes` likeliest nodes of all levels, every node after its parent."""
    found = (node for level in levels for node in level)
    return sorted(found, key=lambda node: (-node.chance, node.depth))[:nodes]


def beams(levels: Sequence[Sequence[Node]]) -> list[Node]:
    """Return the nodes of the last level and their ancestors, shallow ones first."""
    return with_ancestors(levels[-1] if levels else ())


def with_ancestors(nodes: Sequence[Node]) -> list[Node]:
    """Return nodes and all between them and the root, shallow ones first."""
    found: dict[Node, None] = {}
    for node in nodes:
        at: Node | None = node
        while at is not None and at.parent is not None:
            found[at] = None
            at = at.parent
    return sorted(found, key=lambda node: node.depth)


def as_draft(nodes: Sequence[Node]) -> Draft:
    """Return nodes, each after its parent, as a draft."""
    if not nodes:
        return EMPTY
    places = {node: place for place, node in enumerate(nodes)}
    parents = [places[n.parent] if n.parent and n.parent.parent else ROOT for n in nodes]
    tokens = [node.token for node in nodes]
    return Draft(
        np.array(tokens, np.int64),
        np.array(parents, np.int64),
        chances=np.array([node.chance for node in nodes]),
    )
